//! Whether a model fits before it is loaded: a machine out of memory takes other programs down with it.

use anyhow::ensure;

use crate::model::Model;

/// Refuses a model if `share` of its weights, what this host is to hold, exceeds the memory that the system calls
/// available. Where the system does not say (no /proc/meminfo), nothing is refused.
pub(super) fn check(model: &Model, share: f64) -> anyhow::Result<()> {
    let Some(available) = available_bytes() else { return Ok(()) };
    let needed = (model.weight_bytes() as f64 * share) as u64;
    ensure!(
        needed <= available,
        "{}: its weights take {:.1} GiB in memory (bf16 stays bf16, all else becomes f32), but only {:.1} GiB are \
         available: choose a smaller model{}",
        model.name,
        gib(needed),
        gib(available),
        if model.name.starts_with("random:") { ", or fewer layers with random:SHAPE,layers=L" } else { "" }
    );
    Ok(())
}

/// Refuses a batch whose KV cache and logits on the CPU exceed the available memory.
pub(super) fn check_batch(model: &Model, batch: usize, tokens: usize) -> anyhow::Result<()> {
    let Some(available) = available_bytes() else { return Ok(()) };
    let config = &model.config;
    let cached = 2 * config.n_layers * config.n_kv_heads * config.head_dim;
    let of_each =
        (tokens.saturating_mul(cached)).saturating_add(config.vocab).saturating_mul(size_of::<f32>());
    let needed = of_each.saturating_mul(batch) as u64;
    ensure!(
        needed <= available,
        "--batch {batch} of {tokens} tokens each take {:.1} GiB of KV cache and logits, but only {:.1} GiB are \
         available: choose a smaller --batch, or fewer tokens",
        gib(needed),
        gib(available)
    );
    Ok(())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// `MemAvailable` of /proc/meminfo, or the memory limit that a container puts on this process if that is less.
fn available_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib =
        meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.trim().strip_suffix(" kB")?;
    let available = kib.parse::<u64>().ok()? * 1024;
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    Some(limit.map_or(available, |limit| limit.min(available)))
}
