#!/usr/bin/env bash
# The gateway with curl: the models, one streamed answer, and the story of the request behind it.
#
#   AGORA_API_KEY=agora_… examples/curl.sh "Why is the sky blue?"
#
# AGORA_GATEWAY, AGORA_PRIVACY and AGORA_MODEL as in openai_client.py.
set -euo pipefail

gateway=${AGORA_GATEWAY:-http://127.0.0.1:8420}
privacy=${AGORA_PRIVACY:-owner}
model=${AGORA_MODEL:-auto}
question=${1:-Tell me the story of the lighthouse.}
headers=$(mktemp)
trap 'rm -f "$headers"' EXIT

ask() {
  # the key goes in by a file descriptor: a command line can be read by other users of the machine
  curl --silent --show-error --fail-with-body --config <(printf 'header = "Authorization: Bearer %s"\n' "$AGORA_API_KEY") "$@"
}

echo "models:"
ask "$gateway/v1/models"
echo

echo "answer, as server-sent events:"
body=$(python3 -c 'import json, sys; print(json.dumps({"model": sys.argv[1], "stream": True,
  "messages": [{"role": "user", "content": sys.argv[2]}]}))' "$model" "$question")
ask --no-buffer --dump-header "$headers" --header "Content-Type: application/json" \
  --header "X-Agora-Privacy: $privacy" --data "$body" "$gateway/v1/chat/completions"

job=$(tr -d '\r' <"$headers" | awk -F ': ' 'tolower($1) == "x-agora-job" {print $2}')
echo "job $job:"
ask "$gateway/api/jobs/$job"
echo
