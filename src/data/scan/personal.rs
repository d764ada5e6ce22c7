//! Personal data that can be told by its shape: addresses of mail, telephone, card, account and US social security numbers.
//! Names and street addresses cannot.

use std::sync::LazyLock;

use regex::Regex;

use super::masked;

/// A kind of personal data: what it is, its pattern, and what a match must pass.
struct Rule {
    what: &'static str,
    pattern: &'static str,
    is_real: fn(&str) -> bool,
}

const RULES: &[Rule] = &[
    Rule {
        what: "a mail address",
        pattern: r"(?i)\b[a-z0-9._%+-]{1,64}@(?:[a-z0-9-]{1,63}\.)+[a-z]{2,24}\b",
        is_real: is_mail,
    },
    Rule { what: "a telephone number", pattern: r"\+[1-9][\d ()./-]{6,22}\d\b", is_real: is_telephone },
    Rule { what: "a card number", pattern: r"\b[2-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{3,4}\b", is_real: is_card },
    Rule {
        what: "an IBAN",
        pattern: r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
        is_real: is_iban,
    },
    Rule {
        what: "a US social security number",
        pattern: r"\b\d{3}-\d{2}-\d{4}\b",
        is_real: is_social_security,
    },
];

/// Returns what each piece of personal data in a text is, its first characters alone shown.
pub fn find(text: &str) -> Vec<String> {
    static EACH: LazyLock<Vec<Regex>> = LazyLock::new(|| {
        let compiled = |rule: &Rule| Regex::new(rule.pattern).expect("the patterns of a constant table");
        RULES.iter().map(compiled).collect()
    });
    let mut found = Vec::new();
    for (rule, pattern) in RULES.iter().zip(EACH.iter()) {
        let matches = pattern.find_iter(text).map(|found| found.as_str());
        found.extend(
            matches.filter(|text| (rule.is_real)(text)).map(|text| format!("{} {}", rule.what, masked(text))),
        );
    }
    found
}

/// Addresses of domains that are nobody's (RFC 2606, RFC 6761, RFC 6762) are no one's.
fn is_mail(address: &str) -> bool {
    const NOBODYS: [&str; 6] = ["example", "test", "invalid", "localhost", "local", "internal"];
    const KNOWN: [&str; 3] = ["example.com", "example.net", "example.org"];
    let domain = address.rsplit('@').next().unwrap_or_default().to_ascii_lowercase();
    let is_under = |known: &&str| domain == **known || domain.ends_with(&format!(".{known}"));
    !NOBODYS.iter().chain(&KNOWN).any(is_under)
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

/// ITU-T E.164: 8 to 15 digits; 555-0100 to 555-0199 are for fiction.
fn is_telephone(text: &str) -> bool {
    let digits = digits(text);
    let is_fiction = digits.len() == 11 && digits[0] == 1 && digits[4..9] == [5, 5, 5, 0, 1];
    (8..=15).contains(&digits.len()) && !is_fiction
}

/// ISO/IEC 7812: the check digit by Luhn's sum; networks' numbers for tests are left out.
fn is_card(text: &str) -> bool {
    const FOR_TESTS: [&str; 5] =
        ["4111111111111111", "4242424242424242", "4000000000000002", "5555555555554444", "378282246310005"];
    let digits = digits(text);
    let number: String = digits.iter().map(u32::to_string).collect();
    let is_network = match (digits[0], digits[1]) {
        (4, _) | (6, 0 | 2 | 4 | 5) | (5, 1..=5) | (2, 2..=7) => digits.len() == 16,
        (3, 4 | 7) => digits.len() == 15,
        _ => false,
    };
    let luhn = |(place, digit): (usize, &u32)| match place % 2 {
        0 => *digit,
        _ => digit * 2 / 10 + digit * 2 % 10,
    };
    let sum: u32 = digits.iter().rev().enumerate().map(luhn).sum();
    is_network && sum.is_multiple_of(10) && !FOR_TESTS.contains(&number.as_str())
}

/// ISO 13616: the number modulo 97 is 1, letters standing for 10 to 35.
fn is_iban(text: &str) -> bool {
    let bare: String = text.chars().filter(|c| *c != ' ').collect();
    if !(15..=34).contains(&bare.len()) {
        return false;
    }
    let (head, tail) = bare.split_at(4);
    let mut rest = 0_u32;
    for value in tail.chars().chain(head.chars()).filter_map(|c| c.to_digit(36)) {
        rest = (rest * if value < 10 { 10 } else { 100 } + value) % 97;
    }
    rest == 1
}

/// Numbers that were never given out are nobody's.
fn is_social_security(text: &str) -> bool {
    let (area, group, serial) = (&text[..3], &text[4..6], &text[7..]);
    !(area == "000" || area == "666" || area.starts_with('9') || group == "00" || serial == "0000")
}
