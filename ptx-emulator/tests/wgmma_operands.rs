//! `wgmma` with operands along M and N, and with A in registers, against plain loops.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, params};
use half::bf16;
use ptx_emulator::memory::MemoryOptions;
use ptx_emulator::{MachineOptions, RunError};

const M: usize = 64;
const DEPTH: usize = 16;
const THREADS: usize = 128;

/// An MN-major operand: its layout as PTX ISA gives it ("Canonical Layouts"), in the notation of CuTe.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Of the descriptor.
    mode: u64,
    /// Units of 16 bytes in a line of the pattern.
    units: usize,
    leading_bytes: usize,
    stride_bytes: usize,
}

/// Strides with gaps, and such that each field is the larger one once.
const LAYOUTS: [Layout; 8] = [
    Layout { mode: 0, units: 1, leading_bytes: 8192, stride_bytes: 128 },
    Layout { mode: 0, units: 1, leading_bytes: 128, stride_bytes: 512 },
    Layout { mode: 1, units: 8, leading_bytes: 2048, stride_bytes: 1024 },
    Layout { mode: 1, units: 8, leading_bytes: 1024, stride_bytes: 8192 },
    Layout { mode: 2, units: 4, leading_bytes: 1024, stride_bytes: 512 },
    Layout { mode: 2, units: 4, leading_bytes: 512, stride_bytes: 8192 },
    Layout { mode: 3, units: 2, leading_bytes: 1024, stride_bytes: 256 },
    Layout { mode: 3, units: 2, leading_bytes: 256, stride_bytes: 8192 },
];

/// Room for an operand in any of them.
const OPERAND_BYTES: usize = 1 << 14;

impl Layout {
    /// `Swizzle<B,4,3> o ((8,W,m),(8,k)):((1,8,LBO),(8W,SBO))`, and `((8,1,m),(8,k)):((1,8,SBO),(8,LBO))` without one.
    fn offset(self, row: usize, k: usize) -> usize {
        let (leading, stride) = if self.mode == 0 {
            (self.stride_bytes, self.leading_bytes)
        } else {
            (self.leading_bytes, self.stride_bytes)
        };
        let along_rows = row % 8 * 2 + row / 8 % self.units * 16 + row / (8 * self.units) * leading;
        let along_k = k % 8 * 16 * self.units + k / 8 * stride;
        let at = along_rows + along_k;
        // Bits 4.. change by bits 7.., as many as the logarithm of a line's units.
        at ^ ((at >> 7) % self.units) << 4
    }

    fn place(self, matrix: &[[bf16; DEPTH]]) -> Vec<u8> {
        let mut bytes = vec![0xFF; OPERAND_BYTES];
        for (row, values) in matrix.iter().enumerate() {
            for (k, value) in values.iter().enumerate() {
                bytes[self.offset(row, k)..][..2].copy_from_slice(&value.to_le_bytes());
            }
        }
        bytes
    }

    fn descriptor(self) -> u64 {
        self.mode << 62 | (self.stride_bytes as u64 >> 4) << 32 | (self.leading_bytes as u64 >> 4) << 16
    }
}

/// K-major, without a swizzle: eight rows of 16 bytes one after the other, then the second eight of k.
fn k_major(matrix: &[[bf16; DEPTH]]) -> (Vec<u8>, u64) {
    let mut bytes = vec![0xFF; OPERAND_BYTES];
    let leading_bytes = matrix.len() * 16;
    for (row, values) in matrix.iter().enumerate() {
        for (k, value) in values.iter().enumerate() {
            let at = k / 8 * leading_bytes + row * 16 + k % 8 * 2;
            bytes[at..][..2].copy_from_slice(&value.to_le_bytes());
        }
    }
    (bytes, (128 >> 4) << 32 | (leading_bytes as u64 >> 4) << 16)
}

/// Small integers, so that sums are exact in any order.
fn matrix(rows: usize, seed: usize) -> Vec<[bf16; DEPTH]> {
    let value = |row: usize, k: usize| (((row * 7 + k * 5 + seed) * 2_654_435_761) >> 7) % 17;
    (0..rows).map(|row| std::array::from_fn(|k| bf16::from_f32(value(row, k) as f32 - 8.0))).collect()
}

/// The four registers of each thread that hold A: PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk16".
fn fragments(a: &[[bf16; DEPTH]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for thread in 0..THREADS {
        let (warp, group, t) = (thread / 32, thread % 32 / 4, thread % 4);
        for i in 0..8 {
            let row = 16 * warp + group + if i % 4 < 2 { 0 } else { 8 };
            let column = 2 * t + i % 2 + if i < 4 { 0 } else { 8 };
            bytes.extend(a[row][column].to_le_bytes());
        }
    }
    bytes
}

/// A block whose threads copy both operands to shared memory, load their registers of A to `%f0…3`, and run `body`,
/// in which MULTIPLY stands for the product.
struct Kernel<'a> {
    columns: usize,
    /// None for K-major.
    a: Option<Layout>,
    b: Option<Layout>,
    in_registers: bool,
    body: &'a str,
}

impl Kernel<'_> {
    fn multiply(&self) -> String {
        let sums = (0..self.columns / 2).map(|i| format!("%acc{i}")).collect::<Vec<_>>().join(", ");
        let [trans_a, trans_b] = [self.a, self.b].map(|layout| u8::from(layout.is_some()));
        let (a, trans_a) = match self.in_registers {
            true => ("{%f0, %f1, %f2, %f3}", String::new()),
            false => ("%a", format!("{trans_a}, ")),
        };
        format!(
            "wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{sums}}}, {a}, %b, %no, 1, 1, {trans_a}{trans_b};",
            self.columns
        )
    }

    fn run(&self) -> Result<Vec<f32>, RunError> {
        let (a, b) = (matrix(M, 1), matrix(self.columns, 2));
        let placed = |layout: Option<Layout>, matrix: &[_]| match layout {
            Some(layout) => (layout.place(matrix), layout.descriptor()),
            None => k_major(matrix),
        };
        let ((a_bytes, a_descriptor), (b_bytes, b_descriptor)) = (placed(self.a, &a), placed(self.b, &b));
        let count = self.columns / 2;
        let store: String = (0..count).map(|i| format!("st.global.b32 [%out+{}], %acc{i};", 4 * i)).collect();
        let source = format!(
            ".visible .entry k(.param .u64 in, .param .u64 fragments, .param .u64 out) {{
              .shared .align 1024 .b8 tile[{bytes}];
              .reg .b64 %in, %out, %a, %b, %from, %rd<3>; .reg .b32 %acc<{count}>, %f<4>, %tid, %at, %to, %v;
              .reg .pred %no, %more;
              ld.param.u64 %in, [in]; ld.param.u64 %from, [fragments]; ld.param.u64 %out, [out];
              mov.u32 %tid, %tid.x; mov.u32 %at, %tid; setp.ne.u32 %no, 0, 0;
              COPY: setp.ge.u32 %more, %at, {words}; @%more bra COPIED;
              mul.wide.u32 %rd0, %at, 4; add.u64 %rd0, %rd0, %in; ld.global.b32 %v, [%rd0];
              mov.u32 %to, tile; mad.lo.u32 %to, %at, 4, %to; st.shared.b32 [%to], %v;
              add.u32 %at, %at, {THREADS}; bra COPY;
              COPIED: fence.proxy.async.shared::cta; bar.sync 0;
              mov.u32 %to, tile; shr.u32 %at, %to, 4; cvt.u64.u32 %rd1, %at;
              add.u64 %a, %rd1, {a_descriptor}; add.u64 %b, %rd1, {b_descriptor};
              mul.wide.u32 %rd2, %tid, 16; add.u64 %from, %from, %rd2;
              ld.global.v4.b32 {{%f0, %f1, %f2, %f3}}, [%from];
              mul.wide.u32 %rd2, %tid, {stride}; add.u64 %out, %out, %rd2;
              {body} {store} ret;
            }}",
            bytes = 2 * OPERAND_BYTES,
            words = 2 * OPERAND_BYTES / 4,
            a_descriptor = a_descriptor as i64,
            b_descriptor = (b_descriptor + (OPERAND_BYTES as u64 >> 4)) as i64,
            stride = 4 * count,
            body = self.body.replace("MULTIPLY;", &self.multiply()),
        );
        let memory = MemoryOptions { race: true, ..MemoryOptions::default() };
        let options = MachineOptions { memory, ..MachineOptions::default() };
        let mut rig = Rig::of(&source.replace("sm_90\n", "sm_90a\n"), options);
        let input = rig.upload(&[a_bytes, b_bytes].concat(), "in");
        let registers = rig.upload(&fragments(&a), "fragments");
        let out = rig.upload(&vec![0xFF; THREADS * 4 * count], "out");
        rig.run("k", [1, 1, 1], [THREADS as u32, 1, 1], 0, &params(&[input, registers, out], &[]))?;
        Ok(rig.words(out, THREADS * count).into_iter().map(f32::from_bits).collect())
    }

    /// The product, by lane and element.
    fn expected(&self) -> Vec<f32> {
        let (a, b) = (matrix(M, 1), matrix(self.columns, 2));
        let count = self.columns / 2;
        let element = |thread: usize, i: usize| {
            let (warp, group, t) = (thread / 32, thread % 32 / 4, thread % 4);
            let (row, column) = (16 * warp + group + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * t + i % 2);
            a[row].iter().zip(&b[column]).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
        };
        (0..THREADS * count).map(|at| element(at / count, at % count)).collect()
    }
}

const ONCE: &str =
    "wgmma.fence.sync.aligned; MULTIPLY; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";

#[test]
fn operands_may_lie_along_m_and_n_in_every_swizzle() {
    for layout in LAYOUTS {
        // N of a part of a line, of a line, and of several.
        for columns in [8, 64, 128] {
            let b = Kernel { columns, a: None, b: Some(layout), in_registers: false, body: ONCE };
            assert_eq!(b.run().unwrap(), b.expected(), "{layout:?}, {columns} columns");
        }
        let a = Kernel { columns: 16, a: Some(layout), b: None, in_registers: false, body: ONCE };
        assert_eq!(a.run().unwrap(), a.expected(), "{layout:?}");
    }
}

#[test]
fn a_may_lie_in_registers() {
    for b in [None, Some(LAYOUTS[2])] {
        for columns in [8, 128] {
            let kernel = Kernel { columns, a: None, b, in_registers: true, body: ONCE };
            assert_eq!(kernel.run().unwrap(), kernel.expected(), "{columns} columns");
        }
    }
}

/// K-major B, and A in registers.
fn kernel(body: &str) -> Kernel<'_> {
    Kernel { columns: 16, a: None, b: None, in_registers: true, body }
}

#[test]
fn registers_of_a_are_not_touched_before_the_wait() {
    let refusal = |body: &str| match kernel(body).run().unwrap_err() {
        RunError::Fault(report) => report.cause.to_string(),
        other => panic!("no fault: {other}"),
    };
    let wait = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";
    for touch in ["mov.b32 %v, %f2;", "mov.b32 %f3, 0;"] {
        let early = format!("wgmma.fence.sync.aligned; MULTIPLY; {touch} {wait}");
        assert!(refusal(&early).contains("before `wgmma.wait_group`"), "{touch}");
        let late = format!("wgmma.fence.sync.aligned; MULTIPLY; {wait} {touch}");
        assert_eq!(kernel(&late).run().unwrap(), kernel(&late).expected());
    }
    // Two products may read the same ones, and give them back with the later one.
    let twice =
        format!("wgmma.fence.sync.aligned; MULTIPLY; wgmma.commit_group.sync.aligned; MULTIPLY; {wait}");
    assert_eq!(kernel(&twice).run().unwrap(), kernel(&twice).expected());
    let between = twice.replace(wait, &wait.replace("aligned 0;", "aligned 1; mov.b32 %f0, 0;"));
    assert!(refusal(&between).contains("before `wgmma.wait_group`"));
    // No register is both: A of one product and an accumulator of another, or of the same.
    let names = "%acc0, %acc1, %acc2, %acc3, %acc4, %acc5, %acc6, %acc7";
    let other = |a: &str| {
        format!(
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {{{names}}}, {{{a}}}, %b, %no, 1, 1, 0;"
        )
    };
    let own = format!("mov.b32 %acc3, 0; wgmma.fence.sync.aligned; {} {wait}", other("%f0, %f1, %f2, %acc3"));
    assert!(refusal(&own).contains("registers of A are its accumulators"));
    let sums = other("%f0, %f1, %f2, %f3").replace("%acc0", "%f1");
    assert!(refusal(&format!("wgmma.fence.sync.aligned; {sums} {wait}")).contains("registers of A"));
    let after = format!(
        "wgmma.fence.sync.aligned; MULTIPLY; {} {wait}",
        other("%v, %v, %v, %v").replace("%acc7", "%f3")
    );
    assert!(refusal(&after).contains("are registers of A of a product in flight"));
}
