#!/bin/sh
# Turns the generated secrets into settings, so that neither compose.yaml nor `docker inspect`
# shows them; then becomes the command.
set -eu

secrets=/run/flotilla/secrets
if [ -r "$secrets/postgres-password" ]; then
  password=$(cat "$secrets/postgres-password")
  export FLOTILLA_DATABASE_URL="postgresql+psycopg://flotilla:$password@postgres:5432/flotilla"
fi
if [ -r "$secrets/share-group" ]; then
  FLOTILLA_SHARE_GROUP=$(cat "$secrets/share-group")
  export FLOTILLA_SHARE_GROUP
fi
exec "$@"
