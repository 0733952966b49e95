-- One rollout over a whole fleet, as it looks when it has ended; one device in five sent a trial.
INSERT INTO rollout (name, model, version, spec, state, state_reason, revision, wave, machine, plan,
    created_by, created_at, ended_at)
VALUES ('r', 'support-slm', '1.5.0', '{}', 'SUCCEEDED', '', 1, 0, '{}', '{}', 'ada', now(), now());
INSERT INTO execution (id, rollout, device_id, wave, position, blueprint, digest, previous, state,
    reason, generation, revert_generation, reverted, offered_at, updated_at)
SELECT 'e-' || id, 'r', id, 0, row_number() OVER (), coalesce(blueprint, ''), digest, digest,
    'SUCCEEDED', '', 3, 0, false, now(), now()
FROM device;
INSERT INTO execution_event (execution_id, at, before, after, reason, digest)
SELECT 'e-' || id, now(), 'OFFERED', 'DOWNLOADING', '', '' FROM device, generate_series(1, 7);
INSERT INTO device_history (device_id, at, kind, digest, version, execution_id, why)
SELECT id, now(), 'active', digest, '1.5.0', 'e-' || id, '' FROM device;
INSERT INTO report_seen (device_id, boot, seq, at)
SELECT id, 1, n, now() - '60 d'::interval FROM device, generate_series(1, 8) n;
INSERT INTO bench (device_id, boot, seq, execution_id, rollout, wave, blueprint, candidate,
    incumbent, verdict, seconds, blocks, at)
SELECT id, 1, 9, 'e-' || id, 'r', 0, coalesce(blueprint, ''), digest, digest, 'pass', 90,
    (SELECT json_object_agg('candidate.series_' || s, series) FROM (
        SELECT s, json_agg(round((10 * random())::numeric, 4)) AS series
        FROM generate_series(1, 14) s, generate_series(1, 24) b WHERE device.id <> '' GROUP BY s
    ) drawn), now()
FROM device WHERE right(id, 1) IN ('0', '5');
INSERT INTO bench_metric (bench_id, name, unit, candidate, incumbent, ratio, ci_low, ci_high,
    tolerance, "limit", n, verdict)
SELECT id, 'metric_' || m, 'ms', 1.5, 1.4, 1.07, 1.01, 1.12, 0.1, NULL, 12, 'pass'
FROM bench, generate_series(1, 6) m;
