-- Asks Mintmark about a request. HAProxy 2.6 or later; nothing else is needed.
--
--   http-request lua.mintmark permission=reports:read
--
-- The argument is the query of /forward-auth: what the route needs.

local server = "mintmark-server.mintmark-system.svc"
local socket = "abns@mintmark"
local timeout = 5000 -- milliseconds

local credentials = { "authorization", "x-api-key" }
local identity = { "x-user-id", "x-user-email", "x-user-roles", "x-user-permissions" }

-- answer ends the request with what the client is told.
local function answer(txn, status, headers, body)
    local reply = txn:reply()
    reply:set_status(status)
    for _, name in ipairs({ "content-type", "www-authenticate", "retry-after", "cache-control" }) do
        if headers[name] then
            reply:add_header(name, headers[name][0])
        end
    end
    reply:set_body(body)
    txn:done(reply)
end

local function ask(txn, need)
    -- HAProxy's own word on the request; of the client's headers only those that Mintmark
    -- has to see, every line of them.
    local headers = {
        ["host"] = { server },
        ["x-forwarded-for"] = { txn.f:src() },
        ["x-forwarded-method"] = { txn.f:method() },
        ["x-forwarded-host"] = { txn.sf:req_fhdr("host") },
        ["x-forwarded-uri"] = { txn.f:url() },
    }
    local sent = txn.http:req_get_headers()
    for _, name in ipairs(credentials) do
        if sent[name] then
            headers[name] = {}
            for i = 0, #sent[name] do
                headers[name][i + 1] = sent[name][i]
            end
        end
    end
    if sent["user-agent"] then
        headers["user-agent"] = { sent["user-agent"][0] }
    end
    return core.httpclient():get({
        url = "http://" .. server .. "/forward-auth?" .. need, dst = socket, headers = headers, timeout = timeout,
    })
end

core.register_action("mintmark", { "http-req" }, function(txn, need)
    txn:set_var("txn.mintmark", "refused")
    local asked, found = pcall(ask, txn, need)
    if not asked or not found or not found.status or found.status == 0 then
        answer(txn, 503, {}, "")
        return
    end
    if found.status ~= 200 then
        answer(txn, found.status, found.headers, found.body or "")
        return
    end
    -- Who the caller is, from Mintmark's answer, in the place of whatever the client sent.
    for _, name in ipairs(identity) do
        txn.http:req_del_header(name)
        local value = found.headers[name] and found.headers[name][0]
        if value and value ~= "" then
            txn.http:req_add_header(name, value)
        end
    end
    -- The service needs to know who called, and not their credential.
    for _, name in ipairs(credentials) do
        txn.http:req_del_header(name)
    end
    txn:set_var("txn.mintmark", "allowed")
end, 1)
