//! A hub on loopback: the routes `lctl pull` uses, and the ways they go wrong.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

pub fn sha256_hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Git's blob id, by git itself: the program's own SHA-1 must not vouch for itself.
fn git_id(content: &[u8]) -> String {
    let mut git = std::process::Command::new("git")
        .args(["hash-object", "--stdin"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("git runs");
    git.stdin.take().unwrap().write_all(content).unwrap();
    String::from_utf8(git.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

#[derive(Clone)]
struct Stored {
    path: String,
    content: Vec<u8>,
    digest: String,
    is_lfs: bool,
}

#[derive(Default)]
struct State {
    files: Vec<Stored>,
    token: Option<String>,
    /// Path -> (bytes sent before the connection breaks, how many times still).
    cuts: HashMap<String, (usize, usize)>,
    damaged: Option<String>,
    failing: Option<String>,
    etag: Option<String>,
    ignores_ranges: bool,
    connections: usize,
    transfers: usize,
    ranges: Vec<String>,
    authorizations: Vec<String>,
}

#[derive(Default)]
pub struct FakeHub {
    state: Arc<Mutex<State>>,
    port: u16,
}

struct Request {
    method: String,
    target: String,
    headers: HashMap<String, String>,
}

struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    cut: Option<usize>,
}

impl FakeHub {
    pub fn new() -> Self {
        FakeHub::default()
    }

    pub fn file(self, path: &str, content: &[u8]) -> Self {
        self.add(path, content, git_id(content), false)
    }

    pub fn lfs(self, path: &str, content: &[u8]) -> Self {
        self.add(path, content, sha256_hex(content), true)
    }

    fn add(self, path: &str, content: &[u8], digest: String, is_lfs: bool) -> Self {
        let stored = Stored { path: path.into(), content: content.into(), digest, is_lfs };
        self.state.lock().unwrap().files.push(stored);
        self
    }

    /// Listens on a free port; the thread ends with the test process.
    pub fn start(mut self) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.port = listener.local_addr().unwrap().port();
        let (state, url) = (self.state.clone(), self.url());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, url) = (state.clone(), url.clone());
                std::thread::spawn(move || serve(stream, &state, &url));
            }
        });
        self
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn require_token(&self, token: &str) {
        self.state.lock().unwrap().token = Some(token.into());
    }

    pub fn cut_after(&self, path: &str, bytes: usize, times: usize) {
        self.state.lock().unwrap().cuts.insert(path.into(), (bytes, times));
    }

    pub fn damage(&self, path: &str) {
        self.state.lock().unwrap().damaged = Some(path.into());
    }

    pub fn fail(&self, path: &str) {
        self.state.lock().unwrap().failing = Some(path.into());
    }

    pub fn forge_etag(&self, etag: &str) {
        self.state.lock().unwrap().etag = Some(etag.into());
    }

    pub fn ignore_ranges(&self) {
        self.state.lock().unwrap().ignores_ranges = true;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    /// The Authorization headers of all requests.
    pub fn authorizations(&self) -> Vec<String> {
        self.state.lock().unwrap().authorizations.clone()
    }

    /// Bodies of files sent so far, whole or in part.
    pub fn transfers(&self) -> usize {
        self.state.lock().unwrap().transfers
    }

    /// The Range headers of the transfers, in order.
    pub fn ranges(&self) -> Vec<String> {
        self.state.lock().unwrap().ranges.clone()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, url: &str) {
    let mut state = state.lock().unwrap();
    state.connections += 1;
    let Some(request) = read_request(&stream) else { return };
    let reply = state.answer(&request, url);
    drop(state);
    write_reply(stream, &request, reply);
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut parts = first.split(' ');
    let (method, target) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let mut headers = HashMap::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }
    Some(Request { method, target, headers })
}

fn write_reply(mut stream: TcpStream, request: &Request, reply: Reply) {
    let mut head = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let body = if request.method == "HEAD" { &[][..] } else { &reply.body };
    let sent = reply.cut.map_or(body.len(), |cut| cut.min(body.len()));
    // The client may hang up first.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..sent]));
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply { status, headers: Vec::new(), body: body.into(), cut: None }
}

impl Reply {
    fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl State {
    fn answer(&mut self, request: &Request, url: &str) -> Reply {
        self.authorizations.extend(request.headers.get("authorization").cloned());
        if let Some(digest) = request.target.strip_prefix("/cdn/") {
            return self.content(request, digest);
        }
        let expected = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if expected.is_some() && expected.as_ref() != request.headers.get("authorization") {
            let body = json!({"error": "Access is restricted"}).to_string();
            return reply(401, body).header("X-Error-Code", "GatedRepo");
        }
        let path = request.target.split('?').next().unwrap_or_default();
        // the same files as a model and as a data set, at addresses that differ
        let path = path.replacen("/api/datasets/", "/api/models/", 1).replacen("/datasets/", "/", 1);
        let path = path.as_str();
        if let Some(revision) = path.strip_prefix("/api/models/acme/tiny/revision/") {
            return match revision {
                "main" | "v1.0" | COMMIT => reply(200, json!({"id": "acme/tiny", "sha": COMMIT}).to_string()),
                _ => reply(404, "{}").header("X-Error-Code", "RevisionNotFound"),
            };
        }
        if path == format!("/api/models/acme/tiny/tree/{COMMIT}") {
            return reply(200, self.listing());
        }
        let resolve = format!("/acme/tiny/resolve/{COMMIT}/");
        match path.strip_prefix(&resolve).map(str::to_owned) {
            Some(file) => self.resolve(request, &file, url),
            None => reply(404, "{}").header("X-Error-Code", "RepoNotFound"),
        }
    }

    /// The listing as the hub writes it: for LFS, `oid` is the pointer's and `lfs.oid` the content's.
    fn listing(&self) -> String {
        let entry = |file: &Stored| match file.is_lfs {
            true => json!({
                "type": "file", "oid": "f".repeat(40), "size": file.content.len(), "path": file.path,
                "lfs": {"oid": file.digest, "size": file.content.len(), "pointerSize": 134},
            }),
            false => {
                json!({"type": "file", "oid": file.digest, "size": file.content.len(), "path": file.path})
            }
        };
        serde_json::Value::from_iter(self.files.iter().map(entry)).to_string()
    }

    fn resolve(&mut self, request: &Request, path: &str, url: &str) -> Reply {
        let Some(file) = self.files.iter().find(|file| file.path == path).cloned() else {
            return reply(404, "{}").header("X-Error-Code", "EntryNotFound");
        };
        if !file.is_lfs {
            return self.content(request, &file.digest).header("X-Repo-Commit", COMMIT);
        }
        let etag = self.etag.clone().unwrap_or(file.digest.clone());
        reply(302, "")
            .header("Location", format!("{url}/cdn/{}", file.digest))
            .header("X-Repo-Commit", COMMIT)
            .header("X-Linked-Etag", format!("\"{etag}\""))
            .header("X-Linked-Size", file.content.len().to_string())
    }

    fn content(&mut self, request: &Request, digest: &str) -> Reply {
        let Some(file) = self.files.iter().find(|file| file.digest == digest).cloned() else {
            return reply(404, "");
        };
        let mut content = file.content;
        if self.damaged.as_ref() == Some(&file.path) {
            content[0] ^= 1;
        }
        let whole = reply(200, content.clone()).header("ETag", format!("\"{digest}\""));
        if request.method == "HEAD" {
            return whole;
        }
        self.transfers += 1;
        if self.failing.as_ref() == Some(&file.path) {
            return reply(418, "this is no file");
        }
        let mut answer = match request.headers.get("range").cloned() {
            Some(range) if !self.ignores_ranges => {
                let start: usize =
                    range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap();
                self.ranges.push(range);
                reply(206, &content[start..])
            }
            _ => whole,
        };
        if let Some((bytes, times)) = self.cuts.get_mut(&file.path)
            && *times > 0
        {
            *times -= 1;
            answer.cut = Some(*bytes);
        }
        answer
    }
}
