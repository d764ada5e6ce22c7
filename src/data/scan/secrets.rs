//! Credentials: tokens whose makers gave them a shape, private keys, passwords in addresses and assignments.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};

use super::masked;

/// A kind of secret.
struct Rule {
    what: &'static str,
    /// The secret is group 1.
    pattern: &'static str,
    /// Least Shannon entropy of the secret in bits per character: what people write for an example has less.
    entropy: f64,
}

const RULES: &[Rule] = &[
    rule(
        "a private key",
        r"(-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s+[A-Za-z0-9+/=:\s-]{40})",
        0.0,
    ),
    rule("an AWS access key id", r"\b((?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16})\b", 3.0),
    rule(
        "an AWS secret access key",
        r#"(?i)aws.{0,20}?(?:secret|sk).{0,20}?["'\s:=]([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|$)"#,
        4.0,
    ),
    rule("a GitHub token", r"\b((?:ghp|gho|ghu|ghs|ghr)_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{82})\b", 3.0),
    rule("a GitLab token", r"\b(gl(?:pat|dt|rt|ptt|soat)-[A-Za-z0-9_-]{20,})\b", 3.0),
    rule("a Slack token", r"\b(xox[abeoprs]-[A-Za-z0-9-]{20,})\b", 3.0),
    rule("a Slack webhook", r"(https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{40,})", 3.0),
    rule(
        "a Discord webhook",
        r"(https://discord(?:app)?\.com/api/webhooks/\d{17,20}/[A-Za-z0-9_-]{60,})",
        3.0,
    ),
    rule("a Google API key", r"\b(AIza[A-Za-z0-9_-]{35})(?:[^A-Za-z0-9_-]|$)", 3.0),
    rule("a Stripe key", r"\b((?:sk|rk)_(?:live|test)_[A-Za-z0-9]{24,})\b", 3.0),
    rule("an OpenAI key", r"\b(sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_-]*T3BlbkFJ[A-Za-z0-9_-]{20,})", 3.0),
    rule("an Anthropic key", r"\b(sk-ant-[a-z0-9]+-[A-Za-z0-9_-]{80,})", 3.0),
    rule("a Hugging Face token", r"\b(hf_[A-Za-z0-9]{34,})\b", 3.0),
    rule("an npm token", r"\b(npm_[A-Za-z0-9]{36})\b", 3.0),
    rule("a PyPI token", r"\b(pypi-AgE[A-Za-z0-9_-]{50,})", 3.0),
    rule("a SendGrid key", r"\b(SG\.[A-Za-z0-9_-]{20,24}\.[A-Za-z0-9_-]{39,50})\b", 3.0),
    rule("a Telegram bot token", r"\b(\d{8,10}:AA[A-Za-z0-9_-]{33})(?:[^A-Za-z0-9_-]|$)", 3.0),
    rule("an Azure storage key", r"(?i)AccountKey=([A-Za-z0-9+/]{86}==)", 4.0),
    rule("a JSON web token", r"\b(eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,})", 3.0),
    rule(
        "a password in an address",
        r#"\b[a-z][a-z0-9+.-]{2,15}://[^\s/:@"'<>]{1,64}:([^\s/:@"'<>{}$]{6,64})@"#,
        2.5,
    ),
    rule(
        "a password or key in an assignment",
        r#"(?i)\b(?:password|passwd|secret|token|api_?key|access_?key|client_?secret)["']?\s*[:=]\s*["']([A-Za-z0-9+/_=.!@#$%^&*-]{16,128})["']"#,
        3.7,
    ),
];

const fn rule(what: &'static str, pattern: &'static str, entropy: f64) -> Rule {
    Rule { what, pattern, entropy }
}

/// Texts that stand for a secret in documentation.
const PLACEHOLDERS: [&str; 6] = ["example", "placeholder", "changeme", "your_", "xxxx", "redacted"];

/// Returns what each secret in a text is, its first characters alone shown.
pub fn find(text: &str) -> Vec<String> {
    static SET: LazyLock<RegexSet> = LazyLock::new(|| {
        RegexSet::new(RULES.iter().map(|rule| rule.pattern)).expect("the patterns of a constant table")
    });
    static EACH: LazyLock<Vec<Regex>> = LazyLock::new(|| {
        let compiled = |rule: &Rule| Regex::new(rule.pattern).expect("the patterns of a constant table");
        RULES.iter().map(compiled).collect()
    });
    let mut found = Vec::new();
    for index in SET.matches(text) {
        for captures in EACH[index].captures_iter(text) {
            let secret = &captures[1];
            if entropy(secret) >= RULES[index].entropy && !is_placeholder(secret) {
                found.push(format!("{} {}", RULES[index].what, masked(secret)));
            }
        }
    }
    found
}

fn is_placeholder(secret: &str) -> bool {
    let lower = secret.to_lowercase();
    PLACEHOLDERS.iter().any(|placeholder| lower.contains(placeholder))
}

/// Returns the Shannon entropy of a text's characters, in bits per character.
fn entropy(text: &str) -> f64 {
    let mut counts = std::collections::BTreeMap::<char, usize>::new();
    text.chars().for_each(|c| *counts.entry(c).or_default() += 1);
    let n = text.chars().count() as f64;
    counts.values().map(|count| *count as f64 / n).map(|share| -share * share.log2()).sum()
}
