//! Attention of prompts over `wgmma`: every wait of its rings and of its products is needed.

use fewsync::driver::{Device, EmulatorOptions, KernelLibrary, Result, Schedule};
use fewsync::kernels::{Addr, AttnPrefill, HeadDim, PTX, PageSize, PagedKv, Ptx, Rows};
use half::bf16;
use rayon::prelude::*;

const KERNEL: &str = "attn_prefill_bf16_d128";
const WIDTH: usize = 128;
/// Five tiles, more than the two stages hold.
const CACHED: usize = 600;

/// The kernel alone out of the file for Hopper, and its text.
fn alone() -> (Ptx, String) {
    let ptx = PTX.iter().find(|ptx| ptx.arch == "sm_90a").unwrap();
    let mut entries = ptx.text.split(".visible .entry ");
    let head = entries.next().unwrap();
    let kernel = entries.find(|text| text.starts_with(&format!("{KERNEL}("))).unwrap();
    let at = ptx.entries.iter().position(|entry| entry.name == KERNEL).unwrap();
    (Ptx { entries: &ptx.entries[at..=at], ..*ptx }, format!("{head}.visible .entry {kernel}"))
}

/// `text` with `instead` in the place of its `index`-th instruction that begins with `mark`.
fn with(instead: &str, text: &str, mark: &str, index: usize) -> String {
    let (at, _) = text.match_indices(mark).nth(index).unwrap();
    let end = at + text[at..].find(';').unwrap() + 1;
    [&text[..at], instead, &text[end..]].concat()
}

fn numbers(n: usize, seed: usize) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(((i * 7 + seed) % 61) as f32 / 32.0 - 1.0)).collect()
}

/// What the kernel makes of one query token, every access in order.
fn attend(ptx: &Ptx, text: &str) -> Result<Vec<bf16>> {
    let ptx: &'static Ptx = Box::leak(Box::new(Ptx { text: text.to_owned().leak(), ..*ptx }));
    let options =
        EmulatorOptions { schedule: Schedule::Random, race: true, seed: 5, ..EmulatorOptions::default() };
    let device = Device::emulated(&options).swap_remove(0);
    let (library, stream) = (KernelLibrary::load_file(&device, ptx)?, device.stream()?);
    let q = device.upload(&numbers(WIDTH, 1), &stream)?;
    let k = device.upload(&numbers(CACHED * WIDTH, 2), &stream)?;
    let v = device.upload(&numbers(CACHED * WIDTH, 3), &stream)?;
    let out = device.allocate_zeroed::<bf16>(WIDTH, &stream)?;
    let [table, starts, lens] =
        [&[0_u32][..], &[0, 1], &[CACHED as u32]].map(|words| device.upload(words, &stream));
    let (table, starts, lens) = (table?, starts?, lens?);
    let head = device.upload(&[0_u32], &stream)?;
    let rows = |at: Addr<bf16>| Rows::new(at, WIDTH as u32);
    let launch = AttnPrefill {
        head_dim: HeadDim::D128,
        q: rows(q.addr()),
        out: rows(out.addr()),
        cache: PagedKv {
            k: k.addr(),
            v: v.addr(),
            block_table: table.addr(),
            max_pages: 1,
            page_size: PageSize::try_from(1024).unwrap(),
            n_kv_heads: 1,
        },
        q_starts: starts.addr(),
        kv_lens: lens.addr(),
        kv_head_of: head.addr(),
        n_heads: 1,
        n_sequences: 1,
        max_q_len: 1,
    };
    // SAFETY: the buffers have these shapes and live until the stream has been waited for.
    unsafe { library.launch(&stream, &launch.launch(library.target()))? };
    out.download(&stream)
}

/// Without a wait an access is out of order, or the result is another one. Four of them other waits imply: a stage is empty
/// when it is first filled, and who copies tells in order, of queries before keys and of values before the next keys.
#[test]
fn attention_needs_every_wait() {
    const AT_ONCE: &str = "setp.eq.b32 %ended, 0, 0;";
    let (ptx, text) = alone();
    let right = attend(&ptx, &text).unwrap();
    for (mark, instead, implied) in [
        ("mbarrier.test_wait.parity.shared::cta.b64 %ended,", AT_ONCE, 1),
        ("mbarrier.try_wait.parity.shared::cta.b64 %ended,", AT_ONCE, 3),
        ("wgmma.wait_group.sync.aligned", "", 0),
    ] {
        let is_sound =
            |&index: &usize| attend(&ptx, &with(instead, &text, mark, index)).is_ok_and(|out| out == right);
        let count = text.matches(mark).count();
        let sound: Vec<_> = (0..count).into_par_iter().filter(is_sound).collect();
        assert!(count > implied && sound.len() == implied, "{mark}: {sound:?} of {count} are not needed");
    }
}
