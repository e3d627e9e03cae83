#!/bin/sh
# Write a random password for each server into secrets/, unless there is one.
set -eu
cd "$(dirname "$0")"
# Only the owner may look into the folder. The files are readable, because each service has another user.
mkdir -p secrets images
chmod 0700 secrets
for name in console-password postgres-password redis-password; do
  if [ ! -s "secrets/$name" ]; then
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"secrets/$name"
    chmod 0444 "secrets/$name"
  fi
done
echo "log in to the console as admin, with the password of $PWD/secrets/console-password"
