#!/bin/sh
# The one-shot service of compose.yaml: make what does not exist yet, and give it to the users of the services.
set -eu
umask 077

# A pair for each member, signed by one authority, which each of them trusts.
make_pair() {
  if [ ! -s "/pki/$1/$1.key" ]; then
    ingest certs new "/pki/$1/$1" --name "$1" --san localhost --ca /pki/authority/site --trust "/pki/$1/trusted.crt"
  fi
  chown -R 10001:10001 "/pki/$1"
}
make_pair node
make_pair remote
make_pair scanner

# The console serves other hosts only if it has users. These commands need nothing else of the configuration.
data=/var/lib/dicom-ingest
export INGEST_CONFIG=/tmp/setup.toml
printf '[node]\ndata_dir = "%s"\n[console]\n' "$data" >"$INGEST_CONFIG"
if [ ! -s "$data/console/users.json" ]; then
  ingest console user add admin --role admin </run/secrets/console-password
fi
if [ ! -s /pki/prometheus/token ]; then
  ingest console token remove prometheus >/dev/null 2>&1 || true
  ingest console token add prometheus --role metrics >/pki/prometheus/token.new
  mv /pki/prometheus/token.new /pki/prometheus/token
fi
cp /pki/node/trusted.crt /pki/prometheus/ca.crt
chown -R 65534:65534 /pki/prometheus
# Not the whole folder: a node at work may have millions of files there, and they are its own.
chown 10001:10001 "$data"
chown -R 10001:10001 "$data/console"
