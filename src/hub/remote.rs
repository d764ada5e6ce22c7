//! The hub itself. hf-hub does revisions, listings and byte streams (with ranges and Xet); its own cache
//! writer is not used, because it restarts broken transfers from zero, stores the body of an HTTP error as
//! a blob, checks no digest, and takes blob names from response headers unchecked.

use std::time::Duration;

use futures::StreamExt;
use hf_hub::repository::{HFRepository, RepoTreeEntry, RepoTypeAny};
use hf_hub::{HFClient, HFError};
use reqwest::Url;
use reqwest::header::{HeaderMap, LOCATION};

use super::id::{is_commit, is_hex};
use super::{Error, Options, RepoId, RepoKind};

/// A file as the hub lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    pub path: String,
    pub bytes: u64,
    /// Git's id of the blob; for an LFS file that blob is only a pointer.
    git_oid: String,
    is_lfs: bool,
}

/// A repository on a hub.
pub struct Remote {
    runtime: tokio::runtime::Runtime,
    client: HFClient,
    repository: HFRepository<RepoTypeAny>,
    /// Follows no redirect: the LFS digest is in the first answer's headers only.
    direct: reqwest::Client,
    options: Options,
    id: RepoId,
}

/// Most redirects within the hub that a HEAD follows (a renamed repository needs one).
const MAX_REDIRECTS: usize = 5;

impl Remote {
    /// Returns a handle; opens no connection yet.
    pub fn new(id: &RepoId, options: &Options) -> Result<Self, Error> {
        endpoint(options)?;
        let name = id.to_string();
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("lctl/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_secs(15))
                .read_timeout(Duration::from_secs(60))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| transfer(&name, e))?;
        let client = builder().build().map_err(|e| transfer(&name, e))?;
        let direct =
            builder().redirect(reqwest::redirect::Policy::none()).build().map_err(|e| transfer(&name, e))?;
        let mut hub = HFClient::builder().client(client).endpoint(&options.endpoint).retry_max_attempts(2);
        // Without a token hf-hub would look for one itself; it sends none that a header cannot hold.
        hub = hub.token(options.token.as_deref().unwrap_or("\n"));
        let hub = hub.build().map_err(|e| transfer(&name, e))?;
        let kind = match id.kind {
            RepoKind::Model => RepoTypeAny::Model,
            RepoKind::Dataset => RepoTypeAny::Dataset,
        };
        let repository = hub.repository(kind, &id.org, &id.name);
        Ok(Remote { runtime, client: hub, repository, direct, options: options.clone(), id: id.clone() })
    }

    /// Returns the commit a revision stands for now.
    pub fn commit(&self) -> Result<String, Error> {
        let RepoId { kind, org, name, .. } = &self.id;
        let revision = self.id.revision();
        let asked = async {
            Ok(match kind {
                RepoKind::Model => self.client.model(org, name).info().revision(revision).send().await?.sha,
                RepoKind::Dataset => {
                    self.client.dataset(org, name).info().revision(revision).send().await?.sha
                }
            })
        };
        match self.runtime.block_on(asked).map_err(|e: HFError| self.explain(e))? {
            Some(sha) if is_commit(&sha) => Ok(sha),
            other => Err(self.malformed(format!("its commit is {other:?}, not 40 hexadecimal digits"))),
        }
    }

    /// Returns every file of a commit.
    pub fn files(&self, commit: &str) -> Result<Vec<Listed>, Error> {
        let listing = async {
            let entries = self.repository.list_tree().revision(commit).recursive(true).send()?;
            futures::pin_mut!(entries);
            let mut files = Vec::new();
            while let Some(entry) = entries.next().await {
                if let RepoTreeEntry::File { oid, size, path, lfs, .. } = entry? {
                    files.push(Listed { path, bytes: size, git_oid: oid, is_lfs: lfs.is_some() });
                }
            }
            Ok(files)
        };
        self.runtime.block_on(listing).map_err(|e: HFError| self.explain(e))
    }

    /// Returns the digest of a file's content: SHA-256 (64 digits) for LFS, git's blob id (40) otherwise.
    ///
    /// hf-hub's listing drops the LFS digest, so it is read from `X-Linked-Etag`.
    pub fn digest(&self, commit: &str, file: &Listed) -> Result<String, Error> {
        if !file.is_lfs {
            let named = is_hex(&file.git_oid, 40).then(|| file.git_oid.clone());
            return named
                .ok_or_else(|| self.malformed(format!("the git id of {} is {:?}", file.path, file.git_oid)));
        }
        let headers = self.head(commit, file)?;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(size) = text("x-linked-size").and_then(|size| size.parse::<u64>().ok())
            && size != file.bytes
        {
            return Err(self.malformed(format!(
                "{} is listed with {} bytes and sent with {size}",
                file.path, file.bytes
            )));
        }
        let etag = text("x-linked-etag").or_else(|| text("etag")).unwrap_or_default();
        let digest = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_hex(&digest, 64) {
            return Err(self.malformed(format!("the digest of {} is {digest:?}, no SHA-256", file.path)));
        }
        Ok(digest)
    }

    /// Returns the headers of the file's address, redirects within the hub followed.
    fn head(&self, commit: &str, file: &Listed) -> Result<HeaderMap, Error> {
        let fail = |source| transfer(&self.name(file), source);
        let mut url = endpoint(&self.options)?;
        let repository = self.id.repository();
        let parts = repository.split('/').chain(["resolve", commit]);
        url.path_segments_mut()
            .map_err(|()| not_an_address(&self.options))?
            .pop_if_empty()
            .extend(parts.chain(file.path.split('/')));
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.direct.head(url.clone());
            if let Some(token) = &self.options.token {
                request = request.bearer_auth(token);
            }
            let response = self.runtime.block_on(async { request.send().await }).map_err(fail)?;
            let status = response.status();
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let target = location.and_then(|location| url.join(location).ok());
            match target {
                Some(target) if status.is_redirection() && target.origin() == url.origin() => {
                    // The last hop's headers count, unless this one already names the content.
                    if response.headers().contains_key("x-linked-etag") {
                        return Ok(response.headers().clone());
                    }
                    url = target;
                }
                _ if status.is_success() || status.is_redirection() => return Ok(response.headers().clone()),
                _ => return Err(self.refused(status.as_u16(), None, status.to_string())),
            }
        }
        Err(self.malformed(format!("{} redirects in a circle", file.path)))
    }

    /// Passes the file's bytes from `start` on to `sink`, which may end the transfer with an error.
    ///
    /// A hub that ignores ranges sends the whole file: the caller notices by its length or digest.
    pub fn stream(
        &self,
        commit: &str,
        file: &Listed,
        start: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let range = (start > 0).then_some(start..file.bytes);
        let transfer = async {
            let request = self.repository.download_file_stream().filename(&*file.path).revision(commit);
            let (_, mut bytes) = request.maybe_range(range).send().await.map_err(|e| self.explain(e))?;
            while let Some(chunk) = bytes.next().await {
                sink(&chunk.map_err(|e| self.explain(e))?)?;
            }
            Ok(())
        };
        self.runtime.block_on(transfer)
    }

    /// Returns the file's name for messages.
    pub fn name(&self, file: &Listed) -> String {
        format!("{}: {}", self.id, file.path)
    }

    pub fn malformed(&self, what: String) -> Error {
        Error::Malformed { id: self.id.to_string(), what }
    }

    fn refused(&self, status: u16, code: Option<&str>, message: String) -> Error {
        Error::Refused {
            id: self.id.to_string(),
            status,
            gated: code == Some("GatedRepo"),
            message,
            has_token: self.options.token.is_some(),
            endpoint: self.options.endpoint.clone(),
        }
    }

    fn explain(&self, error: HFError) -> Error {
        let id = self.id.to_string();
        let has_token = self.options.token.is_some();
        let not_found = || Error::RepositoryNotFound { id: self.id.to_string(), has_token };
        match error {
            HFError::RepoNotFound { .. } => not_found(),
            HFError::RevisionNotFound { context, .. } => {
                match context.and_then(|c| c.error_code).as_deref() {
                    Some("RevisionNotFound") => Error::RevisionNotFound {
                        id: self.id.repository(),
                        revision: self.id.revision().to_owned(),
                    },
                    _ => not_found(),
                }
            }
            HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Http { context } => {
                let message = context.server_message.clone().unwrap_or_else(|| "no reason given".into());
                self.refused(context.status.as_u16(), context.error_code.as_deref(), printable(&message))
            }
            other => transfer(&id, other),
        }
    }
}

/// Returns a hub's message without control characters (a terminal would obey them) and not longer than a line or two.
fn printable(message: &str) -> String {
    message.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Returns the hub's address.
fn endpoint(options: &Options) -> Result<Url, Error> {
    let url = Url::parse(&options.endpoint).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| not_an_address(options))
}

fn not_an_address(options: &Options) -> Error {
    Error::Endpoint { endpoint: options.endpoint.clone() }
}

fn transfer(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Transfer { what: what.to_owned(), source: Box::new(source) }
}
