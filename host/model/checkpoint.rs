//! Opening a model by path, whatever its format.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::gguf::{self, Gguf};
use super::random::RandomModel;
use super::{Config, ModelError, TensorSource, safetensors};

/// What can be opened, for messages.
const ACCEPTED: &str = "a folder with config.json and safetensors, a folder with one .gguf file, a .gguf \
                        file, or a .safetensors file beside its config.json";

/// An opened model: configuration and weights, and where its tokenizer is.
#[derive(Clone)]
pub struct Checkpoint {
    /// The hyper-parameters.
    pub config: Config,
    /// The weights.
    pub source: Arc<dyn TensorSource>,
    /// The metadata of a GGUF file, which hold its tokenizer.
    pub gguf: Option<gguf::Metadata>,
    /// The folder with `tokenizer.json` and its like; none for random weights.
    pub folder: Option<PathBuf>,
}

impl Checkpoint {
    /// Opens a folder or a file. Everything about the weights but their values is checked here, so what
    /// is wrong with a file is said before any work begins.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let metadata = fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => ModelError::not_found(
                path.display().to_string(),
                format!("nothing is there; give {ACCEPTED}"),
            ),
            _ => ModelError::io(path, "read", e),
        })?;
        if metadata.is_dir() { Self::open_folder(path) } else { Self::open_file(path) }
    }

    /// Makes a model of random weights: `random:SHAPE[,layers=L][,seed=S]`.
    pub fn random(spec: &str) -> Result<Self, ModelError> {
        let model = RandomModel::from_spec(spec)?;
        Ok(Self { config: model.config().clone(), source: Arc::new(model), gguf: None, folder: None })
    }

    fn open_folder(folder: &Path) -> Result<Self, ModelError> {
        let not_found = |hint: String| Err(ModelError::not_found(folder.display().to_string(), hint));
        for name in [safetensors::INDEX_FILE, safetensors::SINGLE_FILE] {
            if folder.join(name).is_file() {
                return Self::open_safetensors(&folder.join(name));
            }
        }
        let names = file_names(folder)?;
        let ending = |end: &str| names.iter().filter(|name| name.ends_with(end)).collect::<Vec<_>>();
        match ending(".gguf")[..] {
            [] => {}
            [name] => return Self::open_gguf(&folder.join(name)),
            [first, ..] => {
                return not_found(format!("it holds several .gguf files; name one, such as {first}"));
            }
        }
        if let Some(name) = names.iter().find(|name| name.ends_with(".bin") || name.ends_with(".pth")) {
            return Err(ModelError::unsupported(
                folder.join(name),
                "a PyTorch checkpoint",
                "safetensors, GGUF",
            ));
        }
        if let Some(name) = ending(".safetensors").first() {
            return not_found(format!(
                "it holds {name}, but neither {} nor {}",
                safetensors::SINGLE_FILE,
                safetensors::INDEX_FILE
            ));
        }
        let empty = if names.is_empty() { "the folder is empty" } else { "the folder holds no weights" };
        not_found(format!("{empty}; give {ACCEPTED}"))
    }

    fn open_file(path: &Path) -> Result<Self, ModelError> {
        let start = first_bytes(path)?;
        let has_extension = |wanted| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(wanted));
        if start.starts_with(&gguf::MAGIC) || has_extension("gguf") {
            return Self::open_gguf(path);
        }
        if has_extension("safetensors") || path.ends_with(safetensors::INDEX_FILE) {
            return Self::open_safetensors(path);
        }
        let what = match start[..] {
            [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => "a PyTorch checkpoint".into(),
            [b't' | b'a' | b'f' | b'l' | b'm', b'j' | b'l' | b'm', b'g', b'g', ..] => {
                "a GGML file from before GGUF".into()
            }
            [] => return Err(ModelError::corrupt(path, "the file is empty")),
            _ => format!("a file that starts with {:?}", String::from_utf8_lossy(&start)),
        };
        Err(ModelError::unsupported(path, what, ACCEPTED))
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let gguf = Gguf::open(path)?;
        let config = Config::from_gguf(&gguf)?;
        let source = gguf.source(&config)?;
        Ok(Self { config, source, gguf: Some(gguf.metadata), folder: Some(folder_of(path)) })
    }

    /// `path` is an index or a single file.
    fn open_safetensors(path: &Path) -> Result<Self, ModelError> {
        let folder = folder_of(path);
        let config = read_config(&folder)?;
        let source = match path.ends_with(safetensors::INDEX_FILE) {
            true => safetensors::open_index(path, &config)?,
            false => safetensors::open_file(path, &config)?,
        };
        Ok(Self { config, source, gguf: None, folder: Some(folder) })
    }
}

/// The folder a file lies in.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.into(),
        _ => ".".into(),
    }
}

fn file_names(folder: &Path) -> Result<Vec<String>, ModelError> {
    let wrap = |e| ModelError::io(folder, "read", e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(wrap)? {
        names.push(entry.map_err(wrap)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Up to four bytes.
fn first_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    use std::io::Read;
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut start));
    read.map(|_| start).map_err(|e| ModelError::io(path, "read", e))
}

/// `config.json`, with the special tokens of `generation_config.json` where there is one.
fn read_config(folder: &Path) -> Result<Config, ModelError> {
    let path = folder.join("config.json");
    let text = read_optional(&path)?.ok_or_else(|| {
        let hint = "the weights beside it need the model's config.json; copy it there".into();
        ModelError::Missing { path: path.clone(), hint }
    })?;
    let config = Config::from_hf(&path, &text)?;
    let path = folder.join("generation_config.json");
    match read_optional(&path)? {
        Some(text) => config.with_generation(&path, &text),
        None => Ok(config),
    }
}

fn read_optional(path: &Path) -> Result<Option<String>, ModelError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ModelError::io(path, "read", e)),
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
