#!/usr/bin/env bash
# Logs a CI job in to Mintmark, and notes in its audit log what the job does.
#
#   mintmark.sh check   looks at the form of $MINTMARK_KEY, checksum included, and asks nobody
#   mintmark.sh login   exchanges the job's OIDC token, or $MINTMARK_KEY, for a JWT that
#                       lives for minutes, and leaves it in a file for `curl -H @FILE`
#   mintmark.sh event   login, and then an event of the type cicd
#
# Needs bash 4, curl 7.76 and jq. All it is told stands in the environment:
#
#   MINTMARK_URL          https://mintmark.example.com
#   MINTMARK_CACERT       file with the CA of that server, where it is not a public one
#   MINTMARK_AUDIENCE     audience of the TrustedIssuer (default: MINTMARK_URL)
#   MINTMARK_ID_TOKEN     the job's OIDC token, where CI puts it there (GitLab); GitHub is asked for one
#   MINTMARK_KEY          key or service token, where there is no OIDC token
#   MINTMARK_SCOPE        permissions the JWT is to have, separated by spaces (default: all)
#   MINTMARK_TIMEOUT      seconds for all attempts of one request (default: 120)
#   MINTMARK_EVENT        name of the event, such as deploy.started; with MINTMARK_STATUS,
#                         MINTMARK_ENVIRONMENT and MINTMARK_DETAIL (a JSON object of strings)
#
# It ends with 0, or with
#   2  something is missing or malformed; nothing was sent
#   3  the credential is not accepted (401): mistyped, revoked, expired, or not trusted
#   4  it is accepted and may not do this (403)
#   5  the server refuses the request (another 4xx)
#   6  the server cannot be reached or is busy (429, 5xx), after several attempts
#
# Values of credentials are neither printed nor in the arguments of a process.

set +x # a trace would hold values
set -euo pipefail
export LC_ALL=C
umask 077

readonly EX_USAGE=2 EX_UNAUTHENTICATED=3 EX_FORBIDDEN=4 EX_REFUSED=5 EX_UNAVAILABLE=6

# What holds a value is no part of the environment of curl and jq.
key=${MINTMARK_KEY-} id_token=${MINTMARK_ID_TOKEN-} request_token=${ACTIONS_ID_TOKEN_REQUEST_TOKEN-}
unset MINTMARK_KEY MINTMARK_ID_TOKEN ACTIONS_ID_TOKEN_REQUEST_TOKEN

on_github() { [[ ${GITHUB_ACTIONS-} == true ]]; }

# note prints a line. What a server said cannot become a command of the runner's.
note() { printf 'mintmark: %s\n' "$(printf '%s' "$*" | tr -c '[:print:]' ' ')" >&2; }

# die CODE TEXT...
die() {
  local code=$1 text
  shift
  note "$*"
  if on_github; then
    text=$(printf '%s' "$*" | tr -c '[:print:]' ' ')
    printf '::error title=Mintmark::%s\n' "${text//%/%25}"
  fi
  exit "$code"
}

# mask has the runner take the value out of everything that is printed from now on.
mask() {
  if on_github; then printf '::add-mask::%s\n' "$1"; fi
}

# --- The form of a value ------------------------------------------------------------

# crc32 puts the CRC-32 (IEEE) of $1 into $crc.
crc32() {
  local i bit byte
  crc=$((0xffffffff))
  for ((i = 0; i < ${#1}; i++)); do
    printf -v byte '%d' "'${1:i:1}"
    ((crc ^= byte)) || true
    for ((bit = 0; bit < 8; bit++)); do
      ((crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1)) || true
    done
  done
  ((crc ^= 0xffffffff)) || true
}

# check_form says what is wrong with the form of $key. A value that is neither an API key
# nor a service token may be another system's, declared by its SHA-256.
check_form() {
  local crc sum i
  local -r digits=0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz
  if [[ -z $key ]]; then die $EX_USAGE "MINTMARK_KEY is empty: is the secret there for this environment, and for this event? Pull requests from forks get none."; fi
  if [[ $key =~ [^!-~] ]]; then die $EX_USAGE "MINTMARK_KEY holds a space, a line end or something else that no value has: was it copied with what is around it?"; fi
  if [[ $key =~ ^mk[0-9A-Za-z]{6}\. ]]; then
    if ! [[ $key =~ ^mk[0-9A-Za-z]{6}\.[0-9A-Za-z]{49}$ ]]; then die $EX_USAGE "MINTMARK_KEY begins like an API key and has the wrong length or characters (${#key}, want 58)"; fi
    crc32 "${key:0:52}"
    sum=""
    for ((i = 0; i < 6; i++)); do
      sum=${digits:crc % 62:1}$sum
      ((crc /= 62)) || true
    done
    if [[ $sum != "${key:52}" ]]; then die $EX_USAGE "MINTMARK_KEY has a wrong checksum: a character was mistyped or lost"; fi
    note "the key ${key:0:8} is well formed"
    return
  fi
  if [[ $key =~ ^sk_([a-z][a-z0-9]{0,15}_)?[0-9a-f]{64}$ ]]; then
    note "the service token is well formed"
    return
  fi
  if [[ $key =~ ^sk_([a-z][a-z0-9]{0,15}_)?[0-9a-f]{72}$ ]]; then
    crc32 "${key:0:${#key}-8}"
    printf -v sum '%08x' "$crc"
    if [[ $sum != "${key: -8}" ]]; then die $EX_USAGE "MINTMARK_KEY has a wrong checksum: a character was mistyped or lost"; fi
    note "the service token is well formed"
    return
  fi
  if ((${#key} < 20 || ${#key} > 512)); then die $EX_USAGE "MINTMARK_KEY has ${#key} characters: no value has fewer than 20 or more than 512"; fi
  note "MINTMARK_KEY is neither an API key nor a service token of Mintmark's: it can only be another system's, declared by its SHA-256"
}

# --- Requests -----------------------------------------------------------------------

# quoted puts $1 into quotes for curl's configuration.
quoted() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

# ask URL AUTHORIZATION ARGUMENTS... sends one request, again while the server is busy, and
# leaves the status in $status and the answer in $work/body.
ask() {
  local url=$1 authorization=$2 wait=1 after deadline=$((SECONDS + ${MINTMARK_TIMEOUT:-120}))
  shift 2
  while :; do
    : >"$work/headers"
    : >"$work/body"
    status=$(
      {
        printf 'url = %s\n' "$(quoted "$url")"
        if [[ -n $authorization ]]; then printf 'header = %s\n' "$(quoted "Authorization: $authorization")"; fi
        if [[ -n ${MINTMARK_CACERT-} && $url == "$MINTMARK_URL"/* ]]; then printf 'cacert = %s\n' "$(quoted "$MINTMARK_CACERT")"; fi
      } | curl --config - --silent --show-error --proto '=https' --connect-timeout 10 --max-time 30 \
        --output "$work/body" --dump-header "$work/headers" --write-out '%{http_code}' "$@" 2>"$work/curl"
    ) || status=000
    case $status in
      000 | 429 | 502 | 503 | 504) ;;
      *) return 0 ;;
    esac
    after=$(tr -d '\r' <"$work/headers" | awk 'tolower($1) == "retry-after:" && $2 ~ /^[0-9]+$/ { print substr($2, 1, 6) }' | tail -n 1)
    # Of many jobs that were refused together not all come back at once.
    after=$((10#${after:-$wait} + RANDOM % (wait + 1)))
    if ((SECONDS + after >= deadline)); then
      die $EX_UNAVAILABLE "$(host_of "$url") $(why): not tried again, for it asks to wait ${after}s, and MINTMARK_TIMEOUT is ${MINTMARK_TIMEOUT:-120}s"
    fi
    note "$(host_of "$url") $(why): again in ${after}s"
    sleep "$after"
    if ((wait < 32)); then wait=$((2 * wait)); fi
  done
}

host_of() { printf '%s' "$1" | cut -d/ -f3; }

# why says what became of a request.
why() {
  if [[ $status == 000 ]]; then
    printf 'cannot be reached: %s' "$(head -c 300 "$work/curl")"
    return
  fi
  printf 'answers %s' "$status"
  # Problems (RFC 9457) have a detail, errors of OAuth (RFC 6749) a description.
  jq -rj '": " + (.detail // .error_description // .error // empty | tostring)' "$work/body" 2>/dev/null | head -c 500 || true
}

# expect CODE WHAT ends the script where the status is another.
expect() {
  case $status in
    "$1") ;;
    401) die $EX_UNAUTHENTICATED "$2: the server $(why)" ;;
    403) die $EX_FORBIDDEN "$2: the server $(why)" ;;
    4*) die $EX_REFUSED "$2: the server $(why)" ;;
    *) die $EX_UNAVAILABLE "$2: the server $(why)" ;;
  esac
}

# --- Logging in ---------------------------------------------------------------------

# github_token asks the runner for the job's OIDC token.
github_token() {
  local audience
  audience=$(jq -nr --arg a "${MINTMARK_AUDIENCE:-$MINTMARK_URL}" '$a | @uri')
  ask "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=$audience" "bearer $request_token"
  if [[ $status != 200 ]]; then die $EX_UNAVAILABLE "asking GitHub for the job's OIDC token: it $(why). Has the job permissions: id-token: write?"; fi
  id_token=$(jq -r '.value // empty' "$work/body")
  if [[ -z $id_token ]]; then die $EX_UNAVAILABLE "GitHub answers without an OIDC token"; fi
}

# exchange_token trades the OIDC token (RFC 8693).
exchange_token() {
  local scope=()
  mask "$id_token"
  printf '%s' "$id_token" >"$work/id-token"
  if [[ -n ${MINTMARK_SCOPE-} ]]; then scope=(--data-urlencode "scope=$MINTMARK_SCOPE"); fi
  ask "$MINTMARK_URL/oauth2/token" "" \
    --data-urlencode grant_type=urn:ietf:params:oauth:grant-type:token-exchange \
    --data-urlencode subject_token_type=urn:ietf:params:oauth:token-type:jwt \
    --data-urlencode "subject_token@$work/id-token" "${scope[@]}"
  rm -f "$work/id-token"
  if [[ $status == 400 && $(jq -r '.error // empty' "$work/body" 2>/dev/null) == invalid_request ]]; then
    die $EX_UNAUTHENTICATED "the job's OIDC token is not accepted: no TrustedIssuer takes this issuer, audience, repository, ref or environment. The server's log says which check failed."
  fi
  expect 200 "exchanging the job's OIDC token"
  jwt=$(jq -r '.access_token // empty' "$work/body")
}

# exchange_key trades the key, so that later steps hold something that lives for minutes.
exchange_key() {
  check_form
  mask "$key"
  ask "$MINTMARK_URL/api/auth/token" "Bearer $key" --request POST
  expect 200 "logging in with MINTMARK_KEY"
  jwt=$(jq -r '.token // empty' "$work/body")
}

login() {
  if [[ -n $id_token ]]; then
    exchange_token
  elif [[ -n $request_token && -n ${ACTIONS_ID_TOKEN_REQUEST_URL-} ]]; then
    github_token
    exchange_token
  else
    exchange_key
  fi
  if ! [[ $jwt =~ ^[A-Za-z0-9_.-]+$ ]]; then die $EX_UNAVAILABLE "the server answers without a JWT"; fi
  mask "$jwt"
  expires_in=$(jq -r '.expires_in // 0 | floor' "$work/body")
  rm -f "$work/body"
  ask "$MINTMARK_URL/api/v1/auth/me" "Bearer $jwt"
  expect 200 "asking who this job is"
  subject=$(jq -r '.subject // empty' "$work/body")
  note "logged in as $subject for ${expires_in}s, with: $(jq -r '.permissions // empty | if type == "array" then join(" ") else . end' "$work/body")"
}

# hand_over leaves the JWT to later steps of the job.
hand_over() {
  local file
  file=$(mktemp "${RUNNER_TEMP:-${TMPDIR:-/tmp}}/mintmark-header.XXXXXXXXXX")
  printf 'Authorization: Bearer %s\n' "$jwt" >"$file"
  if [[ -n ${GITHUB_OUTPUT-} ]]; then
    printf 'header-file=%s\nexpires-in=%s\nsubject=%s\n' "$file" "$expires_in" "$(printf '%s' "$subject" | tr -c '[:print:]' ' ')" >>"$GITHUB_OUTPUT"
  else
    printf '%s\n' "$file"
  fi
}

# --- Events -------------------------------------------------------------------------

# event notes what the job does. However often it is sent, it is one event: the same
# attempt of the same job that tells of the same thing has the same key.
event() {
  local of idempotency
  of=${GITHUB_RUN_ID:-${CI_JOB_ID:-$(cat /proc/sys/kernel/random/uuid)}}
  idempotency=$(printf '%s\n' "${GITHUB_REPOSITORY-}${CI_PROJECT_PATH-}" "$of" "${GITHUB_RUN_ATTEMPT-}" "${GITHUB_JOB-}" \
    "$MINTMARK_EVENT" "${MINTMARK_STATUS-}" "${MINTMARK_ENVIRONMENT-}" "${MINTMARK_DETAIL-}" | sha256sum | cut -c 1-64)
  jq -n '
    def first_of($names): [$names[] as $n | env[$n] // empty | select(. != "")] | first // null;
    {
      event: env.MINTMARK_EVENT,
      status: first_of(["MINTMARK_STATUS"]),
      environment: first_of(["MINTMARK_ENVIRONMENT", "CI_ENVIRONMENT_NAME"]),
      pipeline: first_of(["GITHUB_WORKFLOW", "CI_PIPELINE_NAME", "CI_JOB_NAME"]),
      repository: first_of(["GITHUB_REPOSITORY", "CI_PROJECT_PATH"]),
      ref: first_of(["GITHUB_REF", "CI_COMMIT_REF_NAME"]),
      commit: first_of(["GITHUB_SHA", "CI_COMMIT_SHA"]),
      url: (if (env.GITHUB_RUN_ID // "") != "" then "\(env.GITHUB_SERVER_URL)/\(env.GITHUB_REPOSITORY)/actions/runs/\(env.GITHUB_RUN_ID)" else first_of(["CI_PIPELINE_URL"]) end),
      detail: (first_of(["MINTMARK_DETAIL"]) // "null" | fromjson)
    } | with_entries(select(.value != null))' >"$work/event" 2>"$work/jq" ||
    die $EX_USAGE "MINTMARK_DETAIL is not a JSON object: $(head -c 200 "$work/jq")"
  ask "$MINTMARK_URL/api/v1/audit/cicd-event" "Bearer $jwt" --header 'Content-Type: application/json' \
    --header "Idempotency-Key: \"$idempotency\"" --data-binary "@$work/event"
  expect 202 "noting $MINTMARK_EVENT in the audit log"
  note "noted $MINTMARK_EVENT in the audit log as $(jq -r '.id // empty' "$work/body")"
}

# --- What to do ---------------------------------------------------------------------

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=000 jwt="" subject="" expires_in=0

what=${1-}
if [[ $what != check ]]; then
  for tool in curl jq awk; do
    command -v "$tool" >/dev/null || die $EX_USAGE "$tool is not installed"
  done
  MINTMARK_URL=${MINTMARK_URL-}
  MINTMARK_URL=${MINTMARK_URL%/}
  export MINTMARK_URL
  form='^https://[][A-Za-z0-9.:_/-]+$'
  if ! [[ $MINTMARK_URL =~ $form ]]; then die $EX_USAGE "MINTMARK_URL is not an https URL such as https://mintmark.example.com"; fi
  if ! [[ ${MINTMARK_TIMEOUT:-120} =~ ^[0-9]{1,5}$ ]]; then die $EX_USAGE "MINTMARK_TIMEOUT is not a number of seconds"; fi
fi
case $what in
  check) check_form ;;
  login)
    login
    hand_over
    ;;
  event)
    if [[ -z ${MINTMARK_EVENT-} ]]; then die $EX_USAGE "MINTMARK_EVENT is empty: name what happens, such as deploy.started"; fi
    export MINTMARK_EVENT
    login
    event
    hand_over
    ;;
  *) die $EX_USAGE "use $0 check, $0 login or $0 event" ;;
esac
