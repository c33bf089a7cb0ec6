//! One file of a repository: found whole in the cache, or fetched and checked.
//!
//! `hf-hub` resumes a `.part` file, but takes whatever arrives for whole; so length and, where the hub
//! announces one, SHA-256 are checked here.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use hf_hub::api::sync::{Api, Metadata};
use hf_hub::{Cache, Repo};

use super::Failure;
use crate::model::digest;
use crate::model::progress::Progress;

/// Attempts per file, each going on where the one before broke off.
const ATTEMPTS: u32 = 3;
/// The pause after the first failed attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
/// Smaller files are not worth a progress bar.
const SHOWN_BYTES: usize = 1 << 20;

/// Makes `name` whole in the cache and returns its size in bytes.
pub(super) fn fetch(api: &Api, cache: &Cache, repo: &Repo, name: &str) -> Result<u64, Failure> {
    let mut attempt = 1;
    loop {
        match attempt_once(api, cache, repo, name) {
            Err(failure) if failure.is_passing() && attempt < ATTEMPTS => {
                std::thread::sleep(PAUSE * 2u32.pow(attempt - 1));
                attempt += 1;
            }
            result => return result,
        }
    }
}

fn attempt_once(api: &Api, cache: &Cache, repo: &Repo, name: &str) -> Result<u64, Failure> {
    let remote = api.repo(repo.clone());
    let announced = api.metadata(&remote.url(name))?;
    let bytes = announced.size() as u64;
    let pointer = cache.repo(repo.clone()).pointer_path(announced.commit_hash()).join(name);
    let blob = cache.repo(repo.clone()).blob_path(announced.etag());
    if fs::metadata(&pointer).is_ok_and(|metadata| metadata.len() == bytes) {
        return Ok(bytes);
    }
    remove(&pointer)?;
    remove(&blob)?;
    prepare_part(&blob.with_extension("part"), bytes)?;
    let path = remote.download_with_progress(name, Bar::new(name, announced.size()))?;
    if let Err(failure) = check(&path, name, &announced) {
        remove(&pointer)?;
        remove(&blob)?;
        return Err(failure);
    }
    Ok(bytes)
}

/// Checks a file that has just arrived. Large files are named by their SHA-256.
fn check(path: &Path, name: &str, announced: &Metadata) -> Result<(), Failure> {
    let (bytes, expected) = (fs::metadata(path)?.len(), announced.size() as u64);
    if bytes != expected {
        return Err(Failure::Damaged(format!("{name} arrived with {bytes} bytes instead of {expected}")));
    }
    let etag = announced.etag();
    let is_sha256 = etag.len() == 64 && etag.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_sha256 && digest::sha256(&mut File::open(path)?)? != etag {
        return Err(Failure::Damaged(format!("{name} arrived with another sha256 than announced")));
    }
    Ok(())
}

/// A part that is already whole would be asked for beyond its end, which hubs refuse: it gives up its
/// last byte. A part that is too long is of no use.
fn prepare_part(part: &Path, bytes: u64) -> Result<(), Failure> {
    match fs::metadata(part).map_or(0, |metadata| metadata.len()) {
        length if length > bytes => remove(part),
        length if length == bytes && bytes > 0 => {
            Ok(File::options().write(true).open(part).and_then(|file| file.set_len(bytes - 1))?)
        }
        _ => Ok(()),
    }
}

/// Removes a file or a link, also one that points nowhere.
fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// Shows the bytes of a large file as they come.
struct Bar(Option<Progress>);

impl Bar {
    fn new(name: &str, bytes: usize) -> Self {
        Self((bytes >= SHOWN_BYTES).then(|| Progress::start(name, bytes as u64)))
    }
}

impl hf_hub::api::Progress for Bar {
    fn init(&mut self, _bytes: usize, _name: &str) {}

    fn update(&mut self, bytes: usize) {
        self.0.iter().for_each(|bar| bar.add(bytes as u64));
    }

    fn finish(&mut self) {
        self.0.iter().for_each(Progress::finish);
    }
}
