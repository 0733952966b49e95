#!/bin/sh
# A simulated device: enrols on its first start, then runs the agent.
set -eu

token=$(cat /var/lib/flotilla/enrolment/token)
flotilla-agent enroll --server "$DEVICE_SERVER" --token "$token" \
  --device "$DEVICE_NAME" --blueprint "$DEVICE_BLUEPRINT" --label site=compose
exec flotilla-agent run
