//! The folder of a run: what it was asked for, how far it is, and what each block came to. Every file is written
//! whole or not at all, and the record last, so that it never speaks of what is not there.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::weights::Changed;
use super::{DistillError, Job, Options, block_file};
use crate::model::Storage;
use crate::spd::replacement::MadeFor;
use crate::spd::{BlockPlan, file};

/// What one block came to. Errors are mean squared errors on held-out chunks relative to the mean square of the
/// block's output, averaged over tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockResult {
    /// The block.
    pub block: usize,
    /// The error with the model's own weights.
    pub zero_shot: f64,
    /// The error of the closed form, where it was asked for.
    pub closed_form: Option<f64>,
    /// The error of what was written.
    pub distilled: f64,
    /// Gradient steps behind it.
    pub steps: usize,
    /// Wall time of the block, its pass through the synchronised model included.
    pub seconds: f64,
}

/// All that decides the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    model: String,
    tp: usize,
    /// SHA-256 of the tokens.
    text: String,
    /// Blocks that are fitted.
    blocks: Vec<usize>,
    plan: Vec<BlockPlan>,
    options: Options,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    format: String,
    version: u32,
    asked: Asked,
    /// The first block that is not done; its input is on disk.
    next_block: usize,
    results: Vec<BlockResult>,
}

const FORMAT: &str = "fewsync-distill";
const VERSION: u32 = 1;

/// An open run. It has its folder to itself until it is dropped.
pub(super) struct Run {
    folder: PathBuf,
    record: Record,
    _lock: File,
}

impl Run {
    /// Starts a run in `job.folder`, or takes up the one that is there.
    pub(super) fn open(job: &Job<'_>) -> Result<Self, DistillError> {
        let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(job.tokens));
        let asked = Asked {
            model: job.source.fingerprint()?,
            tp: job.plan.tp(),
            text: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            blocks: job.blocks.to_vec(),
            plan: job.plan.blocks().to_vec(),
            options: job.options.clone(),
        };
        let folder = job.folder.to_path_buf();
        fs::create_dir_all(&folder).map_err(DistillError::io(&folder, "create"))?;
        let lock = lock(&folder)?;
        let path = folder.join(RECORD);
        let record = match fs::read_to_string(&path) {
            Ok(text) => parse(&text, &asked).map_err(|what| DistillError::Record { path, what })?,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Record { format: FORMAT.into(), version: VERSION, asked, next_block: 0, results: Vec::new() }
            }
            Err(e) => return Err(DistillError::io(&path, "read")(e)),
        };
        Ok(Self { folder, record, _lock: lock })
    }

    pub(super) fn next_block(&self) -> usize {
        self.record.next_block
    }

    /// Where the input of a block is while the run is at it.
    pub(super) fn input(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("input{layer}.f32"))
    }

    /// Where the attended heads of the block at hand are.
    pub(super) fn attended(&self) -> PathBuf {
        self.folder.join("attended.f32")
    }

    /// Writes the replacement tensors of a block.
    pub(super) fn save_block(&self, layer: usize, tensors: &[Changed]) -> Result<(), DistillError> {
        let path = self.folder.join(block_file(layer));
        let mut views = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let dtype = match tensor.storage {
                Storage::F32 => Dtype::F32,
                Storage::Bf16 => Dtype::BF16,
            };
            let view = TensorView::new(dtype, tensor.shape.clone(), &tensor.bytes);
            views.push((&tensor.name, view.expect("bytes were made for this shape")));
        }
        let Asked { model, tp, plan, .. } = &self.record.asked;
        let made_for = MadeFor { model: model.clone(), tp: *tp, heads: plan[layer].heads.clone() };
        let made_for = serde_json::to_string(&made_for).expect("names and numbers serialise");
        let header = HashMap::from([(MadeFor::KEY.to_owned(), made_for)]);
        let bytes = safetensors::serialize(views, Some(header)).expect("a list of sound views serialises");
        self.write(&path, &bytes)
    }

    /// Notes that all blocks below `next_block` are done and removes what no later one needs.
    pub(super) fn advance(
        &mut self,
        next_block: usize,
        result: Option<BlockResult>,
    ) -> Result<(), DistillError> {
        self.record.next_block = next_block;
        self.record.results.extend(result);
        let text = serde_json::to_vec_pretty(&self.record).expect("a record serialises");
        self.write(&self.folder.join(RECORD), &text)?;
        self.remove(&self.input(next_block - 1))
    }

    /// Removes what only an unfinished run needs.
    pub(super) fn finish(self) -> Result<Vec<BlockResult>, DistillError> {
        self.remove(&self.attended())?;
        self.remove(&self.input(self.record.next_block))?;
        self.remove(&self.folder.join(LOCK))?;
        Ok(self.record.results)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), DistillError> {
        let part = part_of(path);
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        write().map_err(DistillError::io(path, "write"))
    }

    fn remove(&self, path: &Path) -> Result<(), DistillError> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(DistillError::io(path, "remove")(e)),
            _ => Ok(()),
        }
    }
}

/// The record's name in its folder.
const RECORD: &str = "distill.json";

/// Held while a run is at work.
const LOCK: &str = "lock";

/// Where a file is while it is being written: a run that was killed leaves no more than one such, and the next
/// writes over it.
pub(super) fn part_of(path: &Path) -> PathBuf {
    path.with_extension("part")
}

fn lock(folder: &Path) -> Result<File, DistillError> {
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(DistillError::io(&path, "create"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let what = "another run is at work there".into();
            Err(DistillError::Record { path: folder.into(), what })
        }
        Err(TryLockError::Error(e)) => Err(DistillError::io(&path, "lock")(e)),
    }
}

/// A record of what is `asked`.
fn parse(text: &str, asked: &Asked) -> Result<Record, String> {
    let record: Record = file::parse(text, "record of a distillation", FORMAT, VERSION)?;
    if record.asked != *asked {
        return Err("it belongs to another run (model, plan, text, blocks or options differ)".into());
    }
    Ok(record)
}
