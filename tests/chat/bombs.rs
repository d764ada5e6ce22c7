//! Templates that attack: each ends quickly, with an error that says why.

use std::time::{Duration, Instant};

use lctl::text::chat::{ChatRequest, ChatTemplate, Error};
use serde_json::Map;

fn render(source: &str) -> Result<String, Error> {
    let messages = [serde_json::json!({"role": "user", "content": "hi"})];
    let now = "2024-07-26T09:05:07".parse().unwrap();
    let template = ChatTemplate::new(source, &Map::new())?;
    template.render(&ChatRequest::new(&messages, now)).map(|rendered| rendered.text)
}

const BOMBS: &[(&str, &str)] = &[
    ("a loop", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"),
    ("a repeated string", "{{ 'a' * 10 ** 9 }}"),
    ("a string repeated often", "{% set x = 'a' * 10 ** 6 %}{% for i in range(9999) %}{{ x }}{% endfor %}"),
    ("a range", "{{ range(10 ** 9) }}"),
    ("a repeated list", "{{ [1] * 10 ** 9 }}"),
    (
        "doubling by +",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    ),
    (
        "doubling by ~",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    ),
    (
        "doubling of lists",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
    ),
    (
        "a tree printed",
        "{% set n = namespace(x=1) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    ),
    (
        "a tree as JSON",
        "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}{{ n.x | tojson }}",
    ),
    (
        "trees compared",
        "{% set n = namespace(x=1, y=1) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    ),
    (
        "deep lists",
        "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = [n.x] %}{% endfor %}",
    ),
    (
        "deep namespaces",
        "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = namespace(y=n.x) %}{% endfor %}",
    ),
    ("a namespace in itself", "{% set n = namespace() %}{% set n.n = n %}{{ n.n }}"),
    (
        "joins",
        "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(30) %}{% set n.x = n.x | list | join(n.x) %}{% endfor %}",
    ),
    (
        "replacements",
        "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(30) %}{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
    ),
    (
        "replacements by method",
        "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(30) %}{% set n.x = n.x.replace('', n.x) %}{% endfor %}",
    ),
    ("padding", "{{ 'a' | center(10 ** 12) }}"),
    ("padding by method", "{{ 'a'.ljust(10 ** 12) }}{{ 'a'.zfill(10 ** 12) }}"),
    ("padding by format", "{{ '%999999999d' % 1 }}"),
    ("padding by braces", "{{ '{:>999999999}'.format(1) }}"),
    ("indentation", "{{ 'a\nb' | indent(10 ** 12) }}"),
    ("indentation of JSON", "{{ [1] | tojson(indent=10 ** 12) }}"),
    (
        "captured text",
        "{% set x %}{% for i in range(99999) %}{{ 'aaaaaaaaaa' * 999 }}{% endfor %}{% endset %}",
    ),
    ("a macro calling itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    ("a block calling itself", "{% block a %}{{ self.a() }}{% endblock %}"),
    (
        "a macro calling its caller",
        "{% macro m() %}{{ caller() }}{% call m() %}{% endcall %}{% endmacro %}{% call m() %}{% endcall %}",
    ),
    ("a recursive loop", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
    ("powers", "{{ 10 ** 1000000000 }}"),
    ("batches", "{{ [1] | batch(10 ** 12, 0) | list }}{{ [1] | slice(10 ** 12) | list }}"),
    ("dates", "{{ strftime_now('%c' * 10 ** 7) }}"),
    ("splits", "{% for i in range(9999) %}{% set x = ('a,' * 10 ** 5).split(',') %}{% endfor %}"),
    ("searches", "{% set x = 'a' * 10 ** 7 %}{% for i in range(99999) %}{{ 'b' in x }}{% endfor %}"),
    ("a text without end", "{% for i in range(99999) %}{{ 'abcdefghij' * 100 }}{% endfor %}"),
    (
        "sorting",
        "{% set x = range(99999) | list %}{% for i in range(9999) %}{% set y = x | sort %}{% endfor %}",
    ),
    ("unique", "{{ range(99999) | unique | list | length }}"),
];

#[test]
fn every_bomb_is_defused_in_time() {
    for (name, source) in BOMBS {
        let start = Instant::now();
        let error = render(source).expect_err(name);
        let took = start.elapsed();
        // Two seconds on an idle machine; a minute leaves room for a busy one and code that is not optimized.
        assert!(took < Duration::from_secs(60), "{name} took {took:?}");
        assert!(
            matches!(error, Error::Limit { .. } | Error::Unsupported { .. }),
            "{name} ended with {error:?}"
        );
    }
}

#[test]
fn deep_expressions_are_refused_not_recursed_into() {
    for (open, close) in [("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("{1:", "}"), ("a if b else ", "")]
    {
        let source = format!("{{{{ {}1{} }}}}", open.repeat(100_000), close.repeat(100_000));
        let error = render(&source).expect_err(open);
        assert!(matches!(error, Error::Limit { .. } | Error::Syntax { .. }), "{open}: {error:?}");
    }
    let chain = format!("{{{{ 'a' {} }}}}", "~ 'a'".repeat(10_000));
    assert_eq!(render(&chain).unwrap().len(), 10_001);
    let filters = format!("{{{{ 'a' {} }}}}", "| upper".repeat(5000));
    assert_eq!(render(&filters).unwrap(), "A");
    let blocks = format!("{}{}", "{% if true %}".repeat(50_000), "{% endif %}".repeat(50_000));
    assert!(matches!(render(&blocks), Err(Error::Limit { .. } | Error::Syntax { .. })));
}

#[test]
fn a_template_beyond_its_size_is_refused() {
    let error = render(&"a".repeat(2 << 20)).unwrap_err();
    assert_eq!(error.to_string(), "chat template, line 1: stopped, it has 2097152 bytes, more than 1048576");
}

#[test]
fn errors_name_the_template_s_own_line() {
    let error = render("a\n{# b\n #}\n{%- if true %}\n\n{{ 'x' +\n 1 }}\n{% endif %}").unwrap_err();
    assert!(matches!(error, Error::Type { line: 6, .. }), "{error:?}");
    let error = render("a\n\n{{ 1 | nope }}").unwrap_err();
    assert_eq!(error.to_string(), "chat template, line 3: No filter named 'nope'.");
}

#[test]
fn hostile_sources_do_not_panic() {
    let pieces = [
        "{{", "}}", "{%", "%}", "{#", "#}", "'", "\"", "\\", "-", "+", "raw", "endraw", "if", "for", "x",
        "é", "\n", "|", ".", "(", "[", "0x", "1e", "is", "not", "in", "set", "=",
    ];
    let mut state = 1u64;
    for _ in 0..20_000 {
        let mut source = String::new();
        for _ in 0..12 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            source.push_str(pieces[(state >> 33) as usize % pieces.len()]);
            if state & 1 << 60 != 0 {
                source.push(' ');
            }
        }
        let _ = render(&source);
    }
}
