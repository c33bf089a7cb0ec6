//! `wgmma` against plain loops, and what is wrong with its use.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, params};
use half::bf16;
use ptx_emulator::memory::{Fault, MemoryOptions};
use ptx_emulator::{Cause, MachineOptions, Policy, Report, RunError};

const ROWS: usize = 64;
const DEPTH: usize = 16;

/// How an operand lies in shared memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Of the descriptor.
    mode: u64,
    /// Bytes of a row in the swizzle's pattern, 16 without one.
    row_bytes: usize,
    /// Columns of k before the product's.
    skipped: usize,
}

const LAYOUTS: [Layout; 6] = [
    Layout { mode: 0, row_bytes: 16, skipped: 0 },
    Layout { mode: 1, row_bytes: 128, skipped: 0 },
    Layout { mode: 1, row_bytes: 128, skipped: 48 },
    Layout { mode: 2, row_bytes: 64, skipped: 0 },
    Layout { mode: 2, row_bytes: 64, skipped: 16 },
    Layout { mode: 3, row_bytes: 32, skipped: 0 },
];

impl Layout {
    fn bytes(self, rows: usize) -> usize {
        rows * self.row_bytes.max(32)
    }

    /// Where eight columns of a row lie: PTX ISA, "Strides" and "Swizzling modes".
    fn offset(self, rows: usize, row: usize, half: usize) -> usize {
        if self.mode == 0 {
            // 8 × 8 blocks, those of eight rows one after the other, then the next eight columns.
            return half * rows * 16 + row * 16;
        }
        let chunks = self.row_bytes / 16;
        let chunk = half + self.skipped / 8;
        // The 16-byte chunks of 128 bytes change places by the number of the 128 bytes.
        let swizzled = chunk ^ ((row * self.row_bytes / 128) % chunks);
        row * self.row_bytes + swizzled * 16
    }

    fn descriptor(self, rows: usize) -> u64 {
        let (leading, stride) = if self.mode == 0 { (rows * 16, 128) } else { (16, 8 * self.row_bytes) };
        self.mode << 62
            | (stride as u64 >> 4) << 32
            | (leading as u64 >> 4) << 16
            | (self.skipped as u64 * 2) >> 4
    }

    fn place(self, matrix: &[[bf16; DEPTH]]) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes(matrix.len())];
        for (row, values) in matrix.iter().enumerate() {
            for (half, values) in values.chunks(8).enumerate() {
                let at = self.offset(matrix.len(), row, half);
                for (i, value) in values.iter().enumerate() {
                    bytes[at + 2 * i..][..2].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        bytes
    }
}

/// Small integers, so that sums are exact in any order.
fn matrix(rows: usize, seed: usize) -> Vec<[bf16; DEPTH]> {
    let value = |row: usize, k: usize| (((row * 7 + k * 5 + seed) * 2_654_435_761) >> 7) % 17;
    (0..rows).map(|row| std::array::from_fn(|k| bf16::from_f32(value(row, k) as f32 - 8.0))).collect()
}

/// A block of `threads` that copies the operands to shared memory, runs `body` on `%acc0…`, `%a` and `%b`, and stores
/// the accumulators of its first warpgroup.
struct Kernel<'a> {
    columns: usize,
    layout: Layout,
    threads: u32,
    /// Between the copies and the barrier.
    fence: &'a str,
    body: &'a str,
}

const PROXY: &str = "fence.proxy.async.shared::cta;";

impl Kernel<'_> {
    fn accumulators(&self) -> String {
        (0..self.columns / 2).map(|i| format!("%acc{i}")).collect::<Vec<_>>().join(", ")
    }

    fn multiply(&self, adds: &str, scale: (i32, i32)) -> String {
        format!(
            "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{}}}, %a, %b, {adds}, {}, {}, 0, 0;",
            self.columns,
            self.accumulators(),
            scale.0,
            scale.1
        )
    }

    /// D by lane and element.
    fn run(&self, options: MachineOptions) -> Result<Vec<f32>, RunError> {
        let (a, b) = (matrix(ROWS, 1), matrix(self.columns, 2));
        let (a_bytes, b_bytes) = (self.layout.place(&a), self.layout.place(&b));
        let words = (a_bytes.len() + b_bytes.len()) / 4;
        let count = self.columns / 2;
        let store: String = (0..count).map(|i| format!("st.global.b32 [%out+{}], %acc{i};", 4 * i)).collect();
        let body = self
            .body
            .replace("ADD;", &self.multiply("%yes", (1, 1)))
            .replace("SET;", &self.multiply("%no", (1, 1)))
            .replace("SUBTRACT;", &self.multiply("%yes", (1, -1)));
        let source = format!(
            ".visible .entry k(.param .u64 in, .param .u64 out) {{
              .shared .align 1024 .b8 tile[{bytes}];
              .reg .b64 %in, %out, %a, %b, %rd<4>; .reg .b32 %acc<{count}>; .reg .b32 %tid, %at, %to, %v;
              .reg .pred %yes, %no, %more;
              ld.param.u64 %in, [in]; ld.param.u64 %out, [out]; mov.u32 %tid, %tid.x; mov.u32 %to, tile;
              setp.eq.u32 %yes, 0, 0; setp.ne.u32 %no, 0, 0; mov.u32 %at, %tid;
              COPY: setp.ge.u32 %more, %at, {words}; @%more bra COPIED;
              mul.wide.u32 %rd0, %at, 4; add.u64 %rd0, %rd0, %in; ld.global.b32 %v, [%rd0];
              mad.lo.u32 %to, %at, 4, %to; st.shared.b32 [%to], %v; mov.u32 %to, tile;
              add.u32 %at, %at, {threads}; bra COPY;
              COPIED: {fence} bar.sync 0;
              shr.u32 %at, %to, 4; cvt.u64.u32 %rd1, %at;
              add.u64 %a, %rd1, {a}; add.u64 %b, %rd1, {b};
              mul.wide.u32 %rd2, %tid, {stride}; add.u64 %out, %out, %rd2;
              {body}
              setp.ge.u32 %more, %tid, 128; @%more bra END;
              {store}
              END: ret;
            }}",
            bytes = a_bytes.len() + b_bytes.len(),
            threads = self.threads,
            fence = self.fence,
            a = self.layout.descriptor(ROWS) as i64,
            b = (self.layout.descriptor(self.columns) + (a_bytes.len() as u64 >> 4)) as i64,
            stride = 4 * count,
        );
        let mut rig = Rig::of(&source.replace("sm_90\n", "sm_90a\n"), options);
        let input = rig.upload(&[a_bytes, b_bytes].concat(), "in");
        let out = rig.upload(&vec![0xFF; 128 * 4 * count], "out");
        rig.run("k", [1, 1, 1], [self.threads, 1, 1], 0, &params(&[input, out], &[]))?;
        Ok(rig.words(out, 128 * count).into_iter().map(f32::from_bits).collect())
    }

    /// The product times `factor`, plus `start`, by lane and element.
    fn expected(&self, factor: f32, start: f32) -> Vec<f32> {
        let (a, b) = (matrix(ROWS, 1), matrix(self.columns, 2));
        let count = self.columns / 2;
        let element = |thread: usize, i: usize| {
            let (warp, group, t) = (thread / 32, thread % 32 / 4, thread % 4);
            let (row, column) = (16 * warp + group + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * t + i % 2);
            let dot: f32 = a[row].iter().zip(&b[column]).map(|(a, b)| a.to_f32() * b.to_f32()).sum();
            start + factor * dot
        };
        (0..128 * count).map(|at| element(at / count, at % count)).collect()
    }
}

const WAIT: &str = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";

fn kernel(body: &str) -> Kernel<'_> {
    Kernel { columns: 32, layout: LAYOUTS[1], threads: 128, fence: PROXY, body }
}

fn checked() -> MachineOptions {
    let memory = MemoryOptions { race: true, ..MemoryOptions::default() };
    MachineOptions { memory, max_instructions: Some(2_000_000), ..MachineOptions::default() }
}

/// Accumulators that all hold 3.
fn threes(columns: usize) -> String {
    (0..columns / 2).map(|i| format!("mov.b32 %acc{i}, 0f40400000;")).collect()
}

#[test]
fn products_are_those_of_plain_loops_in_every_layout_and_width() {
    for layout in LAYOUTS {
        for columns in [8, 32, 64, 192, 256] {
            let body = format!("wgmma.fence.sync.aligned; SET; {WAIT}");
            let kernel = Kernel { columns, layout, threads: 128, fence: PROXY, body: &body };
            assert_eq!(
                kernel.run(checked()).unwrap(),
                kernel.expected(1.0, 0.0),
                "{layout:?}, {columns} columns"
            );
        }
    }
}

#[test]
fn products_add_up_over_groups_and_signs() {
    let group = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1;";
    let body = format!(
        "{} wgmma.fence.sync.aligned; ADD; ADD; {group} ADD; {group} SUBTRACT; ADD; ADD; {WAIT}",
        threes(32)
    );
    let kernel = kernel(&body);
    assert_eq!(kernel.run(checked()).unwrap(), kernel.expected(4.0, 3.0));
}

#[test]
fn each_warpgroup_has_products_of_its_own() {
    let body = format!("{} wgmma.fence.sync.aligned; ADD; {WAIT}", threes(32));
    let kernel = Kernel { threads: 256, ..kernel(&body) };
    assert_eq!(kernel.run(checked()).unwrap(), kernel.expected(1.0, 3.0));
}

fn report(kernel: &Kernel<'_>, options: MachineOptions) -> Report {
    match kernel.run(options).unwrap_err() {
        RunError::Fault(report) => *report,
        other => panic!("no fault: {other}"),
    }
}

fn refusal(kernel: &Kernel<'_>) -> (Cause, String) {
    let report = report(kernel, checked());
    (report.cause, report.place.text)
}

#[test]
fn accumulators_are_not_touched_before_they_are_waited_for() {
    for touch in ["mov.b32 %v, %acc5;", "mov.b32 %acc31, 0;".replace("31", "7").as_str()] {
        let body = format!("{} wgmma.fence.sync.aligned; ADD; {touch} {WAIT}", threes(32));
        let (cause, text) = refusal(&kernel(&body));
        assert!(cause.to_string().contains("before `wgmma.wait_group`"), "{cause}");
        assert!(text.contains("%acc"), "{text}");
        // Neither is the group that is not yet waited for.
        let body = format!(
            "{} wgmma.fence.sync.aligned; ADD; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1; {touch} {WAIT}",
            threes(32)
        );
        assert!(refusal(&kernel(&body)).0.to_string().contains("before `wgmma.wait_group`"));
    }
}

#[test]
fn what_a_product_needs_is_asked_for() {
    let of = |body: String, threads| refusal(&Kernel { threads, ..kernel(&body) }).0.to_string();
    let fence = "wgmma.fence.sync.aligned;";
    assert!(of(format!("{} ADD; {WAIT}", threes(32)), 128).contains("no `wgmma.fence`"));
    assert!(of(format!("{} {fence} ADD; {WAIT} ADD; {WAIT}", threes(32)), 128).contains("no `wgmma.fence`"));
    assert!(of(format!("{fence} ADD; {WAIT}"), 128).contains("not written"));
    assert!(of(format!("{fence} SET; {WAIT}"), 160).contains("no whole warpgroup"));
    let apart = "cvt.u64.u32 %rd3, %tid; add.u64 %a, %a, %rd3;";
    assert!(of(format!("{apart} {fence} SET; {WAIT}"), 128).contains("same in all lanes"));
}

#[test]
fn operands_need_a_proxy_fence_and_are_left_alone_until_the_wait() {
    let body = format!("wgmma.fence.sync.aligned; SET; {WAIT}");
    let without = Kernel { fence: "", ..kernel(&body) };
    let (cause, text) = refusal(&without);
    assert!(matches!(&cause, Cause::Memory(fault) if matches!(**fault, Fault::Proxy { .. })), "{cause}");
    assert!(text.contains("wgmma.mma_async"), "{text}");
    // Whoever waits for the writers may fence in their place.
    let body = format!("{PROXY} wgmma.fence.sync.aligned; SET; {WAIT}");
    let behind = Kernel { fence: "", ..kernel(&body) };
    assert_eq!(behind.run(checked()).unwrap(), behind.expected(1.0, 0.0));
    // A store to an operand before the wait, or when only this warp has waited.
    let store = "setp.eq.u32 %more, %tid, 127; @%more st.shared.b32 [%to], 0;";
    for body in [format!("SET; {store} {WAIT}"), format!("SET; {WAIT} {store}")] {
        let body = format!("wgmma.fence.sync.aligned; {body}");
        let (cause, _) = refusal(&kernel(&body));
        assert!(matches!(&cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })), "{cause}");
        assert!(cause.to_string().contains("asynchronous copy"), "{cause}");
    }
    let body = format!("wgmma.fence.sync.aligned; SET; {WAIT} bar.sync 0; {store}");
    let behind = kernel(&body);
    assert_eq!(behind.run(checked()).unwrap(), behind.expected(1.0, 0.0));
}

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

#[test]
fn warps_of_a_group_execute_the_same_instructions_on_the_same_matrices() {
    let fence = "wgmma.fence.sync.aligned;";
    // The number of the warp, and whether it is the last one of the group.
    let warp = format!("{} shr.u32 %at, %tid, 5; setp.eq.u32 %more, %at, 3;", threes(32));
    let out_of_step = [
        (format!("{warp} {fence} @%more add.u64 %a, %a, 1; SET; {WAIT}"), "this with other descriptors"),
        (format!("{warp} {fence} @%more add.u64 %b, %b, 1; SET; {WAIT}"), "this with other descriptors"),
        (format!("{warp} not.pred %yes, %more; {fence} ADD; {WAIT}"), "this with another scale-d"),
        (
            format!("{warp} {fence} @%more bra OTHER; SET; bra BOTH; OTHER: SET; BOTH: {WAIT}"),
            "another instruction in the place of this one",
        ),
        (format!("{warp} {fence} @%more bra BOTH; SET; BOTH: {WAIT}"), "another instruction"),
        (format!("{warp} {fence} SET; @%more bra BOTH; SET; BOTH: {WAIT}"), "another instruction"),
    ];
    for policy in POLICIES {
        let options = || MachineOptions { policy, seed: 3, ..checked() };
        for (body, what) in &out_of_step {
            let report = report(&kernel(body), options());
            assert!(matches!(report.cause, Cause::OutOfStep { .. }), "{report}");
            assert!(report.cause.to_string().contains(what), "{report}");
            let first = report.other.as_ref().expect("the other warp");
            assert_ne!(report.place.thread[0] / 32, first.thread[0] / 32, "{report}");
            assert!(first.text.starts_with("wgmma."), "{report}");
        }
        let body = format!("{warp} @%more bra BOTH; {fence} SET; {WAIT} BOTH:");
        let report = report(&kernel(&body), options());
        assert!(report.cause.to_string().contains("not all warps of the group"), "{report}");
        assert_eq!(report.place.text, "wgmma.fence.sync.aligned");
        // Another group may do as it likes.
        let apart = format!(
            "setp.ge.u32 %more, %tid, 128; {fence} @%more bra OTHER; SET; bra BOTH;
            OTHER: mov.b64 %b, %a; SET; {fence} ADD; BOTH: {WAIT}"
        );
        let apart = Kernel { threads: 256, ..kernel(&apart) };
        assert_eq!(apart.run(options()).unwrap(), apart.expected(1.0, 0.0));
    }
}

#[test]
fn all_lanes_of_a_warp_execute_it() {
    let lane = "setp.eq.u32 %more, %tid, 37; wgmma.fence.sync.aligned;";
    let gone = refusal(&kernel(&format!("{lane} @%more bra END; SET; {WAIT}"))).0;
    assert!(gone.to_string().contains("lanes of the warp have exited"), "{gone}");
    for body in [format!("{lane} @%more bra BOTH; SET; BOTH: {WAIT}"), format!("{lane} @!%more SET; {WAIT}")]
    {
        let apart = refusal(&kernel(&body)).0;
        assert!(matches!(apart, Cause::Divergent { .. }), "{apart}");
    }
}
