// What the page cannot do by itself: the theme, the keys, the dialogs and the connection light.
"use strict";

const root = document.documentElement;
const remembered = localStorage.getItem("theme");
if (remembered) root.dataset.theme = remembered;

function toggleTheme() {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
}

function open(opener) {
  const dialog = document.getElementById(opener.dataset.opens);
  if (!dialog) return;
  // What the person saw when they decided; if it changes while they type, they are told.
  dialog.querySelector("[name=revision]").value = opener.dataset.revision;
  dialog.showModal();
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) open(opener);
  if (event.target.closest("[data-closes]")) event.target.closest("dialog")?.close();
  if (event.target.closest("[data-theme-toggle]")) toggleTheme();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, dialog")) return;
  const wanted = {
    t: () => toggleTheme(),
    "/": () => document.querySelector("input[type=search]")?.focus(),
    p: () => document.querySelector("[data-key=p]")?.click(),
  }[event.key];
  if (!wanted) return;
  event.preventDefault(); // else the key would be typed into what it opens
  wanted();
});

function light(state, text) {
  for (const element of document.querySelectorAll(".live")) {
    element.dataset.state = state;
    element.textContent = text;
  }
}
document.addEventListener("htmx:sse:after:connection", () => light("live", "Live"));
document.addEventListener("htmx:sse:before:connection", (event) => {
  if (event.detail.connection.attempt > 0) light("lost", "Reconnecting");
});
document.addEventListener("htmx:sse:error", (event) => {
  light("lost", "Reconnecting");
  if (event.detail.status === 401) location.reload(); // the session has ended: log in again
});
