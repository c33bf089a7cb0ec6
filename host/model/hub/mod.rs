//! Models from the Hugging Face hub, kept in the cache that its other tools share.
//!
//! The snapshot folder has `config.json`, `tokenizer.json`, the weights as safetensors (one file, or an
//! index and its shards) and, where the repository has them, `tokenizer_config.json`,
//! `generation_config.json` and `chat_template.jinja`. A snapshot that was once whole is used without
//! asking the hub again; a download that was cut off continues where it ended.

mod failure;
mod file;
mod snapshot;

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::{ModelError, cache};
use failure::Failure;
use snapshot::{CONFIG, INDEX, OPTIONAL, Snapshot, TOKENIZER, WEIGHTS};

/// Where the hub is, where its files are kept, and who is asking.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// The hub's address.
    pub endpoint: String,
    /// The folder of the hub's cache, `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// The access token, for gated and private models.
    pub token: Option<String>,
    /// How long the hub may take to say what a repository holds.
    pub answer_limit: Duration,
}

impl HubOptions {
    /// As the hub's own tools do: `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, else the token of a login.
    pub fn from_env() -> Result<Self, ModelError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name| set(name).and_then(|value| value.into_string().ok());
        let user = || dirs::home_dir().map(|home| home.join(".cache").join("huggingface"));
        let home = set("HF_HOME").map(PathBuf::from).or_else(user).ok_or_else(cache::no_home)?;
        let cache = home.join("hub");
        Ok(Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: text("HF_TOKEN").or_else(|| Cache::new(cache.clone()).token()),
            cache,
            answer_limit: Duration::from_secs(30),
        })
    }
}

/// Whether `name` has the form `org/name` of the hub.
pub fn is_repo_id(name: &str) -> bool {
    let part = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    name.split_once('/').is_some_and(|(org, name)| part(org) && part(name))
}

/// The folder of a whole snapshot of `repo` (`org/name`), fetched where needed. Reports on stderr.
pub fn download(repo: &str, options: &HubOptions) -> Result<PathBuf, ModelError> {
    if !is_repo_id(repo) {
        let hint = "a model of the hub is named org/name".into();
        return Err(ModelError::NotFound { spec: repo.into(), hint });
    }
    let cache = Cache::new(options.cache.clone());
    if let Some(dir) = Snapshot::verified(&cache, repo) {
        return Ok(dir);
    }
    let folder = options.cache.join(Repo::model(repo.into()).folder_name());
    cache::create(&folder)?;
    let _lock = cache::lock(&folder.join("fewsync.lock"), repo)?;
    // Whoever held the lock before may have fetched it.
    if let Some(dir) = Snapshot::verified(&cache, repo) {
        return Ok(dir);
    }
    let hub = Hub::new(repo, options, cache)?;
    match hub.info() {
        Ok(info) => hub.fetch(&info),
        Err(failure) => match failure {
            failure @ (Failure::Network(_) | Failure::Status(500..)) => {
                let Some(dir) = Snapshot::offline(&hub.cache, repo) else { return Err(hub.error(failure)) };
                eprintln!("the hub cannot be reached; using the copy of {repo} in the cache");
                Ok(dir)
            }
            failure => Err(hub.error(failure)),
        },
    }
}

/// One repository on a hub.
struct Hub<'a> {
    repo: &'a str,
    options: &'a HubOptions,
    api: Api,
    cache: Cache,
}

impl<'a> Hub<'a> {
    fn new(repo: &'a str, options: &'a HubOptions, cache: Cache) -> Result<Self, ModelError> {
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(options.endpoint.trim_end_matches('/').into())
            .with_token(options.token.clone())
            .with_progress(false)
            .build();
        let api = api.map_err(|e| Failure::from(e).into_error(repo, options))?;
        Ok(Self { repo, options, api, cache })
    }

    /// What the repository holds. Asked for here, because `hf-hub` would wait for ever for a hub that
    /// takes the call and says nothing.
    fn info(&self) -> Result<RepoInfo, Failure> {
        let HubOptions { endpoint, token, answer_limit, .. } = self.options;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(*answer_limit))
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .build()
            .into();
        let endpoint = endpoint.trim_end_matches('/');
        let mut request = agent.get(format!("{endpoint}/api/models/{}/revision/main", self.repo));
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = request.call().and_then(|mut response| response.body_mut().read_to_string());
        let answer = answer.map_err(|e| Failure::from(ApiError::from(Box::new(e))))?;
        serde_json::from_str(&answer)
            .map_err(|e| Failure::Other(format!("its answer is no list of files ({e})")))
    }

    /// Fetches what is missing of the commit that `info` describes.
    fn fetch(&self, info: &RepoInfo) -> Result<PathBuf, ModelError> {
        let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
        self.check_files(info)?;
        // By the commit, so that all files are of one state even if the repository changes meanwhile.
        let revision = Repo::with_revision(self.repo.into(), RepoType::Model, info.sha.clone());
        let mut snapshot = Snapshot::new(&self.cache, &revision, &info.sha);
        let mut fetch = |name: &str| {
            let bytes = file::fetch(&self.api, &self.cache, &revision, name).map_err(|e| self.error(e))?;
            snapshot.add(name, bytes);
            Ok::<_, ModelError>(())
        };
        for name in [CONFIG, TOKENIZER].into_iter().chain(OPTIONAL.into_iter().filter(|name| has(name))) {
            fetch(name)?;
        }
        if has(WEIGHTS) {
            fetch(WEIGHTS)?;
        } else {
            fetch(INDEX)?;
            for shard in snapshot::shards(&self.cache.repo(revision.clone()).pointer_path(&info.sha))? {
                if !has(&shard) {
                    return Err(self.incomplete(format!("its index names {shard}, which it does not have")));
                }
                fetch(&shard)?;
            }
        }
        snapshot.write_stamp(&self.cache, self.repo)
    }

    /// Refuses a repository that this program could not load, before anything is fetched.
    fn check_files(&self, info: &RepoInfo) -> Result<(), ModelError> {
        let names = || info.siblings.iter().map(|file| file.rfilename.as_str());
        let has = |name: &str| names().any(|file| file == name);
        if !has(WEIGHTS) && !has(INDEX) {
            let other =
                |name: &&str| [".bin", ".pth", ".gguf", ".onnx"].iter().any(|end| name.ends_with(end));
            let others = Vec::from_iter(names().filter(other).take(3)).join(", ");
            let only = if others.is_empty() { String::new() } else { format!(", only {others}") };
            return Err(self.incomplete(format!("it has neither {WEIGHTS} nor {INDEX}{only}")));
        }
        match [CONFIG, TOKENIZER].into_iter().find(|name| !has(name)) {
            Some(missing) => Err(self.incomplete(format!("it has no {missing}"))),
            None => Ok(()),
        }
    }

    fn incomplete(&self, why: String) -> ModelError {
        let hint = "use a repository with config.json, tokenizer.json and safetensors weights, \
                    or give a GGUF file with --model FILE";
        ModelError::Fetch { what: self.repo.into(), why, hint: hint.into() }
    }

    fn error(&self, failure: Failure) -> ModelError {
        failure.into_error(self.repo, self.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_have_two_plain_parts() {
        for name in ["meta-llama/Llama-3.2-1B", "a/b_c.d"] {
            assert!(is_repo_id(name), "{name}");
        }
        for name in ["llama", "a/", "/b", "a/b/c", "../b", "a/..", "./model", "a/b?c", "a b/c", "random:tiny"]
        {
            assert!(!is_repo_id(name), "{name}");
        }
    }
}
