//! Addresses and domains that may stand in public data.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

/// Blocks for documentation (RFC 5737), private and shared use, and addresses that the questions are about.
fn is_reserved_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_unspecified()
        || address.is_multicast()
        // neighbours of the private blocks, as wrong choices
        || matches!((a, b, c), (172, 32, 0) | (192, 169, 0) | (11, 0, 0))
}

fn is_reserved_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    (first == 0x2001 && second == 0xdb8)
        || address.is_unicast_link_local()
        || address.is_loopback()
        || address.is_unspecified()
}

/// Reserved names (RFC 2606, RFC 6761), `.internal`, and the services and schemes that facts are about.
fn is_reserved_name(name: &str) -> bool {
    const ENDINGS: [&str; 5] = ["example", "test", "invalid", "localhost", "internal"];
    // Xerces names its parser features under apache.org
    const KNOWN: [&str; 5] = ["example.com", "example.net", "example.org", "amazonaws.com", "apache.org"];
    let lower = name.to_ascii_lowercase();
    ENDINGS.contains(&lower.rsplit('.').next().unwrap_or_default())
        || KNOWN.iter().any(|known| lower == *known || lower.ends_with(&format!(".{known}")))
        || lower.starts_with("discord.com")
        || lower == "notexample.com"
}

/// Returns addresses and domains in a text that are not reserved.
pub fn strangers(text: &str) -> Vec<String> {
    static V4: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b\d{1,3}(?:\.\d{1,3}){3}\b").unwrap());
    static V6: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\b[0-9a-fA-F]{1,4}(?::[0-9a-fA-F]{0,4}){2,7}").unwrap());
    static NAME: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?i)\b(?:[a-z0-9-]+\.)+(?:com|net|org|info|biz|io|ru|cn|de|uk|eu|xyz|top|co|me|dev|app)\b",
        )
        .unwrap()
    });
    let mut strange: Vec<String> = Vec::new();
    // four numbers may be a version, too
    for found in V4.find_iter(text) {
        if found.as_str().parse::<Ipv4Addr>().is_ok_and(|address| !is_reserved_v4(address)) {
            strange.push(found.as_str().to_owned());
        }
    }
    for found in V6.find_iter(text) {
        if found.as_str().parse::<Ipv6Addr>().is_ok_and(|address| !is_reserved_v6(address)) {
            strange.push(found.as_str().to_owned());
        }
    }
    strange.extend(
        NAME.find_iter(text).map(|found| found.as_str().to_owned()).filter(|name| !is_reserved_name(name)),
    );
    strange
}

#[test]
fn other_peoples_addresses_are_noticed() {
    assert_eq!(
        strangers("203.0.113.9 10.1.2.3 2001:db8::1 www.corp.example cdn.example.com"),
        Vec::<String>::new()
    );
    assert_eq!(strangers("8.8.8.8 evil.com 2001:4860::1"), ["8.8.8.8", "2001:4860::1", "evil.com"]);
}
