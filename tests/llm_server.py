"""A test server on the loopback that speaks both chat protocols strictly, and misbehaves on demand.

    with Server() as server:
        LLM("openai/ok", base_url=server.url + "/v1", api_key=KEY)("hello")

The name of the language model chooses what the server does: `ok` answers, any other name is a row
of `MODES`. `name*2` misbehaves for the first two requests and then answers; `name#tag` keeps
separate counts.
`server.requests` holds every request as it came: method, path, headers (lower case) and body.
`Server(proxying=True)` is a proxy; its tunnels lead to the port `goal`, if that is given. One that
is "guarded" lets nobody through.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import Counter
from email.utils import formatdate

KEY = "sk-test-0123456789-abcdef"
OPENAI_FIELDS = {
    "model": str, "messages": list, "temperature": (int, float), "top_p": (int, float), "seed": int,
    "max_tokens": int, "max_completion_tokens": int, "stop": (str, list), "reasoning_effort": str,
    "random_seed": int,
    "response_format": dict, "n": int, "stream": bool,
}  # fmt: skip
ANTHROPIC_FIELDS = {
    "model": str, "messages": list, "max_tokens": int, "system": str, "temperature": (int, float),
    "top_p": (int, float), "top_k": int, "stop_sequences": list, "metadata": dict, "stream": bool,
}  # fmt: skip


class Refusal(Exception):
    """A request that breaks the protocol."""

    def __init__(self, status, message, code=None, param=None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def require(truth, message, status=400, **more):
    if not truth:
        raise Refusal(status, message, **more)


def check_fields(body, fields, words):
    for name, value in body.items():
        require(name in fields, words.format(name), code="unknown_parameter", param=name)
        good = isinstance(value, fields[name]) and not (
            isinstance(value, bool) and fields[name] is not bool
        )
        require(good, f"wrong type of {name}", code="invalid_type", param=name)


def check_messages(body, roles):
    require(body.get("messages"), "messages must not be empty")
    for message in body["messages"]:
        require(set(message) == {"role", "content"}, "a message is role and content")
        require(message["role"] in roles, f"no role {message['role']}")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        require(parts and all(p["type"] == "text" and p["text"] for p in parts), "empty content")


def check_openai(request):
    body = request["body"]
    check_fields(body, OPENAI_FIELDS, "Unrecognized request argument supplied: {}")
    require(body.get("model"), "you must provide a model parameter")
    check_messages(body, {"system", "developer", "user", "assistant", "tool"})
    require(not {"max_tokens", "max_completion_tokens"} <= set(body), "both kinds of max tokens")
    require(len(body.get("stop", [])) <= 4, "at most four stops")
    require(
        0 <= body.get("temperature", 1) <= 2, "temperature must be in 0..2", param="temperature"
    )


def check_anthropic(request):
    body, headers = request["body"], request["headers"]
    version = headers.get("anthropic-version")
    require(version in ("2023-06-01", "2026-10-21"), "anthropic-version: header is required")
    check_fields(body, ANTHROPIC_FIELDS, "{}: Extra inputs are not permitted")
    require({"model", "max_tokens", "messages"} <= set(body), "a field is missing")
    check_messages(body, {"user", "assistant"})
    require(body["messages"][0]["role"] == "user", "first message must use the user role")
    require(all(isinstance(s, str) for s in body.get("stop_sequences", [])), "stops are texts")


def check_http(request, key):
    headers = request["headers"]
    require(request["method"] == "POST", "use POST", 405)
    require(headers.get("content-type") == "application/json", "send application/json", 415)
    require(isinstance(request["body"], dict), "the body is no JSON object")
    given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
    require(key is None or given == key, f"Incorrect API key provided: {given}", 401)


def words_of(content):
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def answer_openai(body, text=None, finish="stop", **message):
    prompt = words_of(body["messages"][-1]["content"])
    text = f"echo: {prompt}" if text is None else text
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000,
        "model": "served-model",
        "choices": [{
            "index": 0, "finish_reason": finish, "logprobs": None,
            "message": {"role": "assistant", "content": text, "refusal": None, **message},
        }],
        "usage": usage,
    }  # fmt: skip


def answer_anthropic(body, text=None, finish="end_turn", **_):
    text = f"echo: {words_of(body['messages'][-1]['content'])}" if text is None else text
    usage = {
        "input_tokens": 11, "output_tokens": 7,
        "cache_creation_input_tokens": 100, "cache_read_input_tokens": None,
    }  # fmt: skip
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        *([{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}] if text else []),
    ]
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "served-model",
        "content": blocks, "stop_reason": finish, "stop_sequence": None, "usage": usage,
    }  # fmt: skip


# Ways to misbehave. Each takes the handler and the request.


def status(number, message="it did not work", headers=(), **error):
    def misbehave(handler, request):
        body = {
            "error": {
                "message": message,
                "type": "some_error",
                "param": None,
                "code": None,
                **error,
            }
        }
        handler.send(number, body, headers)

    return misbehave


def raw_error(code, body, kind="application/json"):
    return lambda handler, request: handler.send(code, body, [("Content-Type", kind)])


def says(**changes):
    """An answer of the right shape, saying what the two protocols call by different names."""

    def misbehave(handler, request):
        finish = changes.get("finish", "stop")
        if request["protocol"] == "anthropic":
            names = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}
            answer = answer_anthropic(
                request["body"], changes.get("text"), names.get(finish, finish)
            )
        else:
            extra = {k: v for k, v in changes.items() if k not in ("text", "finish")}
            answer = answer_openai(request["body"], changes.get("text"), finish, **extra)
        handler.send(200, answer)

    return misbehave


def replaced(**fields):
    return lambda handler, request: handler.send(200, {**handler.good(request), **fields})


REFUSALS = {
    "openai": "Unsupported parameter: '{}' is not supported with this model.",
    "value": "Invalid value for '{}': must be at most 1.",
    "deprecated": "`{}` is deprecated for this model.",
    "camel": "Argument not supported on this model: reasoningEffort",
    "gone": "{} is no longer accepted",
}


def refuses(*names, style="openai"):
    """Refuse the first of these fields that the request has; answer once it has none."""

    def misbehave(handler, request):
        sent = [name for name in names if name in request["body"]]
        if not sent:
            return handler.send(200, handler.good(request))
        if style == "fastapi":
            body = {"detail": [{"type": "extra_forbidden", "loc": ["body", sent[0]], "msg": "no"}]}
            return handler.send(422, body)
        error = {
            "message": REFUSALS[style].format(sent[0]),
            "type": "invalid_request_error",
            "param": sent[0],
            "code": None,
        }
        handler.send(400, {"error": error})

    return misbehave


def redirect(code):
    def misbehave(handler, request):
        handler.send(code, b"", [("Location", handler.server.elsewhere + request["path"])])

    return misbehave


def reset(handler, request):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for end in (handler.rfile, handler.wfile, handler.connection):
        end.close()


def hang_up(handler, request):
    pass


def silent(handler, request):
    handler.pause(30)


def dripping_headers(handler, request):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(300):
        handler.wfile.write(b"X-%d: y\r\n"[:4] % number)
        handler.pause(0.1)


def dripping_body(handler, request):
    data = json.dumps(handler.good(request)).encode()
    handler.head(200, [("Content-Length", str(len(data)))])
    for byte in data:
        handler.wfile.write(bytes([byte]))
        handler.pause(0.1)


def dripping_line(handler, request):
    for byte in b"HTTP/1.1 200 OK" * 20:
        handler.wfile.write(bytes([byte]))
        handler.pause(0.1)


def slow(handler, request):
    handler.pause(0.3)
    handler.send(200, handler.good(request))


def cut_body(handler, request):
    data = json.dumps(handler.good(request)).encode()
    handler.head(200, [("Content-Length", str(len(data) + 50))])
    handler.wfile.write(data)  # all of the JSON, and still not all that was promised


def cut_without_length(handler, request):
    handler.head(200, [])
    handler.wfile.write(json.dumps(handler.good(request)).encode()[:-30])


def cut_chunks(handler, request):
    handler.head(200, [("Transfer-Encoding", "chunked")])
    handler.wfile.write(b'5\r\n{"ab"\r\n')


def raw(text):
    """A good answer whose text is made of these bytes."""

    def misbehave(handler, request):
        data = json.dumps(answer_openai(request["body"], "TEXT")).encode()
        handler.send(200, data.replace(b"TEXT", text))

    return misbehave


def chunked(handler, request):
    data = json.dumps(handler.good(request)).encode()
    handler.head(200, [("Transfer-Encoding", "chunked")])
    for i in range(0, len(data), 20):
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data[i : i + 20]), data[i : i + 20]))
    handler.wfile.write(b"0\r\n\r\n")


def endless(handler, request):
    handler.head(200, [])
    while True:
        handler.wfile.write(b" " * (1 << 20))


def huge_error(handler, request):
    handler.send(400, {"error": {"message": "x" * 5_000_000}})


def packed(handler, request):
    handler.send(
        200,
        gzip.compress(json.dumps(handler.good(request)).encode()),
        [("Content-Encoding", "gzip")],
    )


def packed_unasked(handler, request):
    handler.send(200, gzip.compress(json.dumps(handler.good(request)).encode()))


def packed_cut(handler, request):
    data = gzip.compress(json.dumps(handler.good(request)).encode())[:-20]
    handler.send(200, data, [("Content-Encoding", "gzip")])


def packed_bomb(handler, request):
    handler.send(200, gzip.compress(b" " * (64 << 20)), [("Content-Encoding", "gzip")])


def parrot(handler, request):
    """Answer with what was asked: a status, and a body."""
    code, _, body = words_of(request["body"]["messages"][-1]["content"]).partition(" ")
    handler.send(int(code), body.encode("utf-8", "surrogatepass"))


def no_http(handler, request):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")


def many_headers(handler, request):
    handler.send(200, handler.good(request), [(f"X-{n}", "y") for n in range(150)])


def bom(handler, request):
    handler.send(200, b"\xef\xbb\xbf" + json.dumps(handler.good(request)).encode())


def echoes_key(handler, request):
    headers = request["headers"]
    key = headers.get("authorization", headers.get("api-key", headers.get("x-api-key", "")))
    name = "text" if request["body"]["messages"][-1]["content"] != "slash" else "slash"
    if name == "text":
        return says(text=f"your key is {key}!")(handler, request)
    data = json.dumps(answer_openai(request["body"], f"key {key}")).replace("sk-", "\\u0073k-")
    handler.send(200, data.encode())


def echoes_key_in_error(handler, request):
    sent = request["headers"].get("authorization", "")
    handler.send(
        401,
        {"error": {"message": f"Incorrect API key provided: {sent}", "code": "invalid_api_key"}},
    )


def echoes_key_in_address(handler, request):
    sent = request["headers"].get("authorization", "")
    handler.send(302, b"", [("Location", f"https://elsewhere.example/?key={sent}")])


def echoes_key_in_html(handler, request):
    page = f"<html><h1>403</h1> {request['headers']} </html>".encode()
    handler.send(403, page, [("Content-Type", "text/html")])


def asks_date(handler, request):
    when = formatdate(time.time() + 3, usegmt=True)
    status(503, headers=[("Retry-After", when)])(handler, request)


def asks(value, name="Retry-After", code=429):
    return status(code, headers=[(name, value)])


ENDS = (
    "error network_error insufficient_system_resource abort model_context_window_exceeded "
    "sensitive SAFETY eos"
).split()
OVERFLOWS = {
    "llama": (400, "the request exceeds the available context size, try increasing it"),
    "llama_500": (500, "the request exceeds the available context size, try increasing it"),
    "anthropic": (400, "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
    "anthropic_prompt": (400, "prompt is too long: 208310 tokens > 200000 maximum"),
    "gemini": (400, "The input token count (1200000) exceeds the maximum of 1048576."),
    "xai": (400, "This model's maximum prompt length is 131072 but the request has 140000."),
    "groq": (413, "Request too large for model x: please reduce your message size"),
    "tgi": (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"),
    "together": (422, "`inputs` tokens + `max_new_tokens` must be <= 8193. Given: 9000 `inputs`"),
    "bedrock": (400, "Too many input tokens"),
    "vllm_500": (500, "This model's maximum context length is 8192 tokens."),
}
NGINX = b"""<html>\r
<head><title>502 Bad Gateway</title></head>\r
<body>\r
<center><h1>502 Bad Gateway</h1></center>\r
<hr><center>nginx/1.27.0</center>\r
</body>\r
</html>\r
"""


def choice_error(error):
    """An answer that failed on the way, as gateways tell it in a success."""
    half = {"role": "assistant", "content": "half a th"}
    choice = {"index": 0, "finish_reason": "error", "message": half, "error": error}
    return replaced(choices=[choice], content=[])


def message(**fields):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **fields}}
    return replaced(choices=[choice])


DETAIL = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}
RETRY_INFO = {"error": {"code": 429, "message": "slow down", "details": [DETAIL]}}
GEMINI_KEY = [
    {"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}
]
CONTEXT = "This model's maximum context length is 8192 tokens. However, your messages have 9000."

MODES = {
    **{f"status{code}": status(code) for code in
       (400, 402, 403, 404, 405, 408, 409, 413, 418, 422, 429, 500, 502, 503, 504, 529)},
    **{f"redirect{code}": redirect(code) for code in (301, 302, 303, 307, 308)},
    "quota": status(429, "You exceeded your current quota", code="insufficient_quota"),
    "context": status(400, CONTEXT, code="context_length_exceeded"),
    "unknown_model": status(404, "The model `nope` does not exist", code="model_not_found"),
    "asks_seconds": asks("2.5"), "asks_ms": asks("1500", "Retry-After-Ms"), "asks_date": asks_date,
    "asks_blank": asks(" 2 "),
    "asks_negative": asks("-7"), "asks_nan": asks("nan"), "asks_inf": asks("inf"),
    "asks_rubbish": asks("soon"), "asks_hour": asks("3600"),
    "asks_for_ever": asks("9" * 400), "asks_ms_for_ever": asks("9" * 400, "retry-after-ms"),
    "asks_info": raw_error(429, RETRY_INFO),
    "asks_past": asks("Wed, 21 Oct 2015 07:28:00 GMT"),
    "never": status(503, headers=[("x-should-retry", "false")]),
    "again": status(400, headers=[("x-should-retry", "true")]),
    "error_text": raw_error(400, {"error": "just words"}),
    "error_detail": raw_error(400, {"detail": "detailed words"}),
    "error_message": raw_error(400, {"message": "plain words"}),
    "error_list": raw_error(400, GEMINI_KEY),
    "error_page": raw_error(502, b"<html><h1>Bad <b>gateway</b></h1></html>", "text/html"),
    "error_in_200": raw_error(200, {"error": {"message": "upstream is down", "code": 502}}),
    "error_text_in_200": raw_error(200, {"error": "no such thing"}),
    "reset": reset, "hang_up": hang_up, "silent": silent, "no_http": no_http,
    "slow": slow, "parrot": parrot, "dripping_line": dripping_line, "dripping_headers": dripping_headers,
    "dripping_body": dripping_body,
    "cut_body": cut_body, "cut_without_length": cut_without_length, "cut_chunks": cut_chunks,
    "chunked": chunked, "endless": endless, "huge_error": huge_error, "many_headers": many_headers,
    "packed": packed, "packed_unasked": packed_unasked, "packed_cut": packed_cut,
    "packed_bomb": packed_bomb,
    "page": raw_error(200, b"<html>Welcome to nginx!</html>", "text/html"),
    "nothing": raw_error(200, b""), "not_utf8": raw_error(200, b'{"choices": "\xff\xfe"}'),
    "deep": raw_error(200, b"[" * 200_000), "bom": bom, "a_list": raw_error(200, [1, 2]),
    "just_text": raw_error(200, b'"Unauthorized"'),
    "latin_1": raw(b"caf\xe9"), "raw_newline": raw(b"a\nb"),
    "other_shape": raw_error(200, {"result": "hello"}),
    "wrong_types": raw_error(200, {"choices": 7, "content": 7}),
    "empty": says(text=""), "blank": says(text=" \n"),
    "refused": says(text="", finish="refusal", refusal="I will not."),
    "filtered": says(text="half a th", finish="content_filter"),
    "cut_off": says(text="", finish="length"), "cut_short": says(text="half a th", finish="length"),
    "no_finish": says(finish=None), "tool": says(text="", finish="tool_calls"),
    "parts": says(text=[{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]),
    "no_choices": replaced(choices=[], content=[]), "no_usage": replaced(usage=None),
    "odd_usage": raw_error(
        200, b'{"choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": NaN}}'
    ),
    "surrogate": says(text="lone \ud800 surrogate"),
    "echoes_key": echoes_key,
    "echoes_key_in_address": echoes_key_in_address, "echoes_key_in_error": echoes_key_in_error,
    "echoes_key_in_html": echoes_key_in_html,
    "only_max_tokens": refuses("max_completion_tokens"),
    "only_max_completion_tokens": refuses("max_tokens"),
    "no_max": refuses("max_tokens", "max_completion_tokens"),
    "no_temperature": refuses("temperature"), "mistral_seed": refuses("seed", style="fastapi"),
    "no_seed": refuses("seed", "random_seed", style="fastapi"),
    "cool": refuses("temperature", style="value"),
    "no_heat_any_more": refuses("temperature", style="deprecated"),
    "no_top_p_any_more": refuses("top_p", style="gone"),
    "no_effort": refuses("reasoning_effort", style="camel"),
    **{f"ends_{end}": says(text="half a th", finish=end) for end in ENDS},
    "ends_eos_empty": says(text="", finish="eos"),
    "choice_error": choice_error({"message": "Upstream died", "code": 502}),
    "choice_error_plain": choice_error({"message": "Upstream died"}),
    "odd_code": raw_error(200, {"error": {"message": "odd", "code": "\u00b2"}}),
    "other_code": raw_error(200, {"error": {"message": "odd", "code": 40013}}),
    "odd_refusal": message(content=None, refusal={"why": "x" * 9000}),
    "long_filtered": says(text="x" * 100_000, finish="content_filter"),
    "choice_refusal": choice_error({"message": "Bad request upstream", "code": 400}),
    "xai_balance": status(403, "Your newly created team doesn't have any credits yet."),
    "hot": status(400, "temperature must be <= 2"),
    "flagged": status(400, "Invalid prompt: it was flagged.", code="invalid_prompt"),
    "busy_anthropic": status(
        529, "Overloaded", [("x-should-retry", "true"), ("retry-after", "1e9")]
    ),
    "azure": status(400, "The response was filtered due to the prompt", code="content_filter"),
    **{f"overflow_{name}": status(code, words) for name, (code, words) in OVERFLOWS.items()},
    "raw": status(502, "Provider returned error", metadata={"raw": "the real reason"}),
    "litellm_key": status(400, "No connected db.", code="400"),
    "litellm_model": status(400, "/chat/completions: Invalid model name passed in model=x"),
    "deepseek_balance": status(402, "Insufficient Balance"),
    "balance_429": status(429, "Insufficient balance or no resource package. Please recharge."),
    "openrouter_model": status(404, "No endpoints found for nope/nope."),
    "wants_x_api_key": raw_error(401, {"error": {"message": "x-api-key header is required"}}),
    "nginx": raw_error(502, NGINX, "text/html"),
    "thought": says(text="", reasoning_content="Let me think about it for long"),
    "thought_null": message(content=None, reasoning_content="Let me think"),
    "thought_blank": says(text=" \n ", reasoning="Let me think"),
    "other_usage": replaced(usage={"input_tokens": 11, "output_tokens": 7}),
    "half_usage": replaced(usage={"prompt_tokens": 11}),
    "total_usage": replaced(usage={"total_tokens": 18}),
    "both_usages": replaced(
        usage={"prompt_tokens": 11, "completion_tokens": 7, "cache_read_input_tokens": 9,
               "input_tokens": 99, "output_tokens": 99}),
    "suggests": says(text='{"suggestion": {"x0": 23}}'),
}  # fmt: skip


class Handler(socketserver.StreamRequestHandler):
    """One request a connection, read and answered by hand, so that every byte can be wrong."""

    wbufsize = 0

    def handle(self):
        try:
            request = self.read()
            if request is not None:
                self.answer(request)
        except (OSError, ssl.SSLError):
            pass  # the client left

    def pause(self, seconds):
        if self.server.closing.wait(seconds):
            raise ConnectionError("the server is closing")

    def read(self):
        line = self.rfile.readline().decode("latin-1").split()
        if len(line) != 3:
            return None
        headers = {}
        while (header := self.rfile.readline().decode("latin-1").strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        data = self.rfile.read(int(headers.get("content-length", 0)))
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        request = {"method": line[0], "path": line[1], "headers": headers, "body": body}
        self.server.requests.append(request)
        return request

    def answer(self, request):
        if self.server.proxying and self.server.proxy(self, request):
            return
        path = re.sub(r"^https?://[^/]+", "", request["path"]).partition("?")[0]
        kinds = {"/v1/chat/completions": "openai", "/v1/messages": "anthropic"}
        request["protocol"] = kinds.get(path)
        try:
            require(path in kinds, f"no such address: {path}", 404)
            check_http(request, self.server.key)
            {"openai": check_openai, "anthropic": check_anthropic}[kinds[path]](request)
        except Refusal as no:
            error = {
                "message": no.message,
                "type": "invalid_request_error",
                "param": no.param,
                "code": no.code,
            }
            return self.send(no.status, {"type": "error", "error": error})
        name, times, _ = re.fullmatch(r"(\w+)(?:\*(\d+))?(#.*)?", request["body"]["model"]).groups()
        with self.server.lock:
            self.server.counts[request["body"]["model"]] += 1
            seen = self.server.counts[request["body"]["model"]]
        if name == "ok" or (times and seen > int(times)):
            self.send(200, self.good(request))
        else:
            MODES[name](self, request)

    def good(self, request):
        make = {"openai": answer_openai, "anthropic": answer_anthropic}[request["protocol"]]
        return make(request["body"])

    def head(self, code, headers):
        lines = [
            f"HTTP/1.1 {code} Whatever",
            "Connection: close",
            *(f"{k}: {v}" for k, v in headers),
        ]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def send(self, code, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.head(code, [("Content-Length", str(len(data))), *headers])
        self.wfile.write(data)


class Server(socketserver.ThreadingTCPServer):
    """The server, in threads of its own, from `with` to the end of the block."""

    allow_reuse_address, daemon_threads, request_queue_size, block_on_close = True, True, 128, False

    def __init__(self, key=KEY, proxying=False, tls=None, goal=None, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.key, self.proxying, self.tls, self.goal = key, proxying, tls, goal
        self.requests, self.counts = [], Counter()
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.port = self.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.elsewhere = self.url

    def get_request(self):
        wire, address = super().get_request()
        return (self.tls.wrap_socket(wire, server_side=True) if self.tls else wire), address

    def proxy(self, handler, request):
        """As a proxy: a tunnel for CONNECT; what comes with a whole URL is answered here."""
        if self.proxying == "guarded":
            handler.send(407, b"", [("Proxy-Authenticate", "Basic realm=x")])
            return True
        if request["method"] != "CONNECT":
            return False
        port = self.goal or int(request["path"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as goal:  # whatever its name
            handler.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            wires = [(handler.connection, goal), (goal, handler.connection)]
            threads = [threading.Thread(target=pump, args=pair, daemon=True) for pair in wires]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10)
        return True

    def handle_error(self, request, client_address):
        pass

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        self.server_close()


def pump(source, goal):
    try:
        while data := source.recv(65536):
            goal.sendall(data)
        goal.shutdown(socket.SHUT_WR)
    except OSError:
        pass
