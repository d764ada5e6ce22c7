//! Where the hub and its cache are, from the environment variables `huggingface_hub` documents.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach a hub, and where its files are kept.
#[derive(Clone)]
pub struct Options {
    /// `HF_ENDPOINT`, without a trailing slash.
    pub endpoint: String,
    /// `HF_TOKEN`, or the file that `hf auth login` wrote.
    pub token: Option<String>,
    /// `HF_HUB_CACHE`, or `hub` under `HF_HOME`.
    pub cache_dir: PathBuf,
    /// Never open a connection.
    pub offline: bool,
    /// Hash again what the cache already holds.
    pub verify_cached: bool,
    /// How often a broken transfer is taken up again before the pull fails.
    pub retries: u32,
    /// Wait before the first retry; doubled for each one after it.
    pub backoff: Duration,
}

impl Options {
    /// Returns the options the environment asks for; `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) set to
    /// 1, ON, YES or TRUE means offline.
    pub fn from_env() -> Self {
        let home = hf_home();
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Options {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token(&home),
            cache_dir: text("HF_HUB_CACHE")
                .or_else(|| text("HUGGINGFACE_HUB_CACHE"))
                .map_or_else(|| home.join("hub"), |dir| expand_home(&dir)),
            offline: truthy("HF_HUB_OFFLINE") || truthy("TRANSFORMERS_OFFLINE"),
            verify_cached: false,
            retries: 5,
            backoff: Duration::from_millis(500),
        }
    }
}

/// Returns the variable's value, if it is set and not empty.
fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn truthy(name: &str) -> bool {
    text(name).is_some_and(|value| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

fn hf_home() -> PathBuf {
    if let Some(dir) = text("HF_HOME") {
        return expand_home(&dir);
    }
    let caches = text("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = caches.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    caches.unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface")
}

fn token(home: &std::path::Path) -> Option<String> {
    if let Some(token) = text("HF_TOKEN") {
        return Some(token.trim().to_owned());
    }
    if truthy("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let file = text("HF_TOKEN_PATH").map_or_else(|| home.join("token"), |path| expand_home(&path));
    let token = std::fs::read_to_string(file).ok()?.trim().to_owned();
    (!token.is_empty()).then_some(token)
}
