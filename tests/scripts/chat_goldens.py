"""Renders chat templates with transformers' apply_chat_template and writes what came out.

    python3 tests/scripts/chat_goldens.py TEMPLATES_DIR

TEMPLATES_DIR holds *.jinja files that are not part of the repository: of what they render only SHA-256 and
length are written (tests/golden/chat/templates.json). The templates in tests/golden/chat/features.py are
ours: features.json holds their text in full.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import tokenizers
import transformers
from transformers.utils import chat_template_utils

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "chat"
NOW = datetime.datetime(2024, 7, 26, 9, 5, 7)


class PinnedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = PinnedDatetime

USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "You are terse.\n"}
ASSISTANT = {"role": "assistant", "content": "Paris."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather; \"today\" by default.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city – größer als 1 km²"},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "units": {"type": "string", "enum": ["metric", "imperial"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]},
                "any": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "required": ["city"],
        },
        "return": {"type": "string", "description": "A report"},
    },
}
TIME = {
    "type": "function",
    "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}


def call(name, arguments, id="call0001a"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOOL_TURNS = [
    SYSTEM,
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [call("get_weather", {"city": "Paris", "days": 2, "x": [1, 2.5, None, True]})]},
    {"role": "tool", "name": "get_weather", "tool_call_id": "call0001a", "content": "{\"sky\": \"<clear>\"}"},
    {"role": "assistant", "content": "Clear."},
    {"role": "user", "content": "And the time?"},
]

CONVERSATIONS = {
    "user": {"messages": [USER]},
    "user_prompt": {"messages": [USER], "add_generation_prompt": True},
    "system": {"messages": [SYSTEM, USER], "add_generation_prompt": True},
    "turns": {"messages": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": " And of Spain? "}], "add_generation_prompt": True},
    "ends_with_assistant": {"messages": [USER, ASSISTANT]},
    "tools": {"messages": [SYSTEM, USER], "tools": [WEATHER, TIME], "add_generation_prompt": True},
    "no_tools": {"messages": [USER], "tools": [], "add_generation_prompt": True},
    "tool_turns": {"messages": TOOL_TURNS, "tools": [WEATHER], "add_generation_prompt": True},
    "two_calls": {
        "messages": [
            {"role": "user", "content": "Both."},
            {
                "role": "assistant",
                "content": "Wait.",
                "tool_calls": [call("get_weather", {"city": "Köln \"am\" Rhein's"}), call("now", {}, "call0002b")],
            },
            {"role": "tool", "name": "get_weather", "tool_call_id": "call0001a", "content": "rain\n"},
            {"role": "tool", "name": "now", "tool_call_id": "call0002b", "content": "12:00"},
        ],
        "tools": [WEATHER, TIME],
        "add_generation_prompt": True,
    },
    "arguments_as_text": {
        "messages": [
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": None, "tool_calls": [call("now", "{\"zone\": \"UTC\"}")]},
            {"role": "tool", "name": "now", "tool_call_id": "call0001a", "content": [{"type": "text", "text": "12:00"}]},
        ],
        "tools": [TIME],
        "add_generation_prompt": True,
    },
    "parts": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
            {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
        ],
        "add_generation_prompt": True,
    },
    "empty": {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": ""}], "add_generation_prompt": True},
    "unicode": {
        "messages": [{"role": "user", "content": "Grüße 🌍\u2028 \x1f<b>&amp;</b> 中文\t\"q\" 'p' \\n {{ x }} <|im_end|>\r\n"}],
        "add_generation_prompt": True,
    },
    "reasoning": {
        "messages": [
            USER,
            {"role": "assistant", "content": "<think>\nHmm.\n</think>\n\nParis.", "reasoning_content": "Easy."},
            {"role": "user", "content": "And of Spain?"},
            {"role": "assistant", "content": "Madrid.", "reasoning": "Also easy."},
        ],
    },
    "thinking_on": {"messages": [SYSTEM, USER], "extra": {"enable_thinking": True, "thinking": True}, "add_generation_prompt": True},
    "thinking_off": {"messages": [SYSTEM, USER], "extra": {"enable_thinking": False, "thinking": False}, "add_generation_prompt": True},
    "assistant_first": {"messages": [ASSISTANT, USER]},
    "users_in_a_row": {"messages": [USER, USER], "add_generation_prompt": True},
    "unknown_role": {"messages": [{"role": "wizard", "content": "Abracadabra."}, USER]},
    "continued": {"messages": [USER, {"role": "assistant", "content": "The capital is "}], "continue_final_message": True},
    "documents": {
        "messages": [USER],
        "documents": [{"title": "France", "text": "Paris is its capital."}],
        "add_generation_prompt": True,
    },
}


def tokenizer():
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=empty, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def render(source, case):
    """Returns the text and the spans, or the exception."""
    case = json.loads(json.dumps(case))
    extra = case.pop("extra", {})
    messages = case.pop("messages")
    try:
        text = TOKENIZER.apply_chat_template(messages, chat_template=source, tokenize=False, **case, **extra)
    except Exception as error:  # whatever the template makes of it
        return None, None, error
    if case.get("continue_final_message"):
        return text, [], None
    clean = [{k: v for k, v in message.items() if v is not None} for message in messages]
    _, spans = chat_template_utils.render_jinja_template(
        [clean], chat_template=source, return_assistant_tokens_mask=True, **case, **{**TOKENIZER.special_tokens_map, **extra}
    )
    return text, [[len(text[:end].encode()) for end in span] for span in spans[0]], None


def describe(error):
    kind = "raised" if type(error) is jinja2.exceptions.TemplateError else type(error).__name__
    return {"error": kind, "message": str(error)} if kind == "raised" else {"error": kind}


def write(name, value):
    value = {
        "made_by": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}: tests/scripts/chat_goldens.py",
        "special_tokens": TOKENIZER.special_tokens_map,
        "now": NOW.isoformat(),
        **value,
    }
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def data_templates(folder):
    templates = {}
    for path in sorted(pathlib.Path(folder).glob("*.jinja")):
        source = path.read_text()
        rows = {}
        for name, case in CONVERSATIONS.items():
            text, spans, error = render(source, case)
            if error is not None:
                rows[name] = describe(error)
                continue
            data = text.encode()
            rows[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            if spans:
                rows[name]["spans"] = spans
        templates[path.name] = rows
    write("templates.json", {"conversations": CONVERSATIONS, "templates": templates})
    outcomes = [row for rows in templates.values() for row in rows.values()]
    print(len(templates), "templates,", len(outcomes), "renderings,", sum("error" in row for row in outcomes), "errors")


def feature_templates():
    scope = {}
    exec((GOLDEN / "features.py").read_text(), scope)
    rows = {}
    for name, source in scope["FEATURES"].items():
        text, spans, error = render(source, scope["CASE"])
        rows[name] = {"source": source, **(describe(error) if error is not None else {"text": text})}
        if spans:
            rows[name]["spans"] = spans
    write("features.json", {"case": scope["CASE"], "features": rows})
    print(len(rows), "features")
    for name, row in rows.items():
        if "error" in row:
            print(f"  {name}: {row}")


if __name__ == "__main__":
    TOKENIZER = tokenizer()
    if len(sys.argv) > 1:
        data_templates(sys.argv[1])
    feature_templates()
