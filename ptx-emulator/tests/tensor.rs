//! `cp.async.bulk.tensor` against plain loops, and what is wrong with its use.

#![allow(clippy::unwrap_used)]

mod common;

use common::Rig;
use proptest::prelude::*;
use ptx_emulator::memory::{Fault, MemoryOptions};
use ptx_emulator::{Cause, MachineOptions, Policy, Report, RunError, Swizzle, TensorMap};

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];
/// Shared memory of a tile.
const TILE_BYTES: usize = 4096;
const THREADS: u32 = 64;

fn options(policy: Policy, seed: u64, race: bool) -> MachineOptions {
    let memory = MemoryOptions { race, ..MemoryOptions::default() };
    MachineOptions { policy, seed, memory, max_instructions: Some(2_000_000), ..MachineOptions::default() }
}

/// A kernel with a map `%map` in its parameters, the coordinates `%c0…%c4` and the mbarriers `%full` (one arrival) and
/// `%empty` (all threads); `body` fills `%tile`, and `READ;` copies it to `%out`, each thread every 64th word.
fn kernel(body: &str) -> String {
    let coordinates: String = (0..5).map(|i| format!("ld.param.s32 %c{i}, [at+{}];", 4 * i)).collect();
    let read = format!(
        "{{ .reg .b32 %i, %a, %v; .reg .b64 %o, %d; .reg .pred %more;
        mov.u32 %i, %tid;
        AGAIN: setp.ge.u32 %more, %i, %words; @%more bra OVER;
        shl.b32 %a, %i, 2; add.u32 %a, %tile, %a; ld.shared.u32 %v, [%a];
        mul.wide.u32 %d, %i, 4; add.u64 %o, %out, %d; st.global.u32 [%o], %v;
        add.u32 %i, %i, {THREADS}; bra AGAIN; OVER: }}"
    );
    let body = body.replace("READ;", &read);
    format!(
        ".visible .entry k(.param .align 64 .b8 map[128], .param .u64 out, .param .align 4 .b8 at[20], .param .u32 words) {{
          .shared .align 1024 .b8 tile[{TILE_BYTES}]; .shared .align 8 .b8 bars[16];
          .reg .b64 %map, %out; .reg .b32 %tid, %tile, %full, %empty, %words, %c<5>; .reg .pred %first, %p<4>;
          ld.param.u64 %out, [out]; ld.param.u32 %words, [words]; {coordinates}
          mov.b64 %map, map; cvta.param.u64 %map, %map;
          mov.u32 %tid, %tid.x; mov.u32 %tile, tile; mov.u32 %full, bars; add.u32 %empty, %full, 8;
          setp.eq.u32 %first, %tid, 0;
          @%first mbarrier.init.shared::cta.b64 [%full], 1;
          @%first mbarrier.init.shared::cta.b64 [%empty], {THREADS};
          bar.sync 0;
          {body}
          ret;
        }}"
    )
}

const WAIT: &str = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%full], 0; @!%p1 bra WAIT;";

fn copy(rank: usize) -> String {
    let at = ["%c0", "%c1", "%c2", "%c3", "%c4"][..rank].join(", ");
    format!(
        "cp.async.bulk.tensor.{rank}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%tile], \
         [%map, {{{at}}}], [%full];"
    )
}

/// One box, waited for and read.
fn one_copy(rank: usize, expected_bytes: usize) -> String {
    let copy = copy(rank);
    format!(
        "@!%first bra WAIT;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], {expected_bytes};
        prefetch.tensormap [%map];
        {copy}
        {WAIT}
        READ;"
    )
}

/// A tensor in an allocation that ends with its last element.
#[derive(Debug, Clone)]
struct Tensor {
    element_bytes: u32,
    dims: Vec<u64>,
    strides_bytes: Vec<u64>,
    box_dims: Vec<u32>,
    at: Vec<i32>,
    swizzle: Swizzle,
}

impl Tensor {
    fn extent(&self) -> usize {
        let outer: u64 =
            self.dims[1..].iter().zip(&self.strides_bytes).map(|(n, stride)| (n - 1) * stride).sum();
        (outer + self.dims[0] * u64::from(self.element_bytes)) as usize
    }

    fn box_bytes(&self) -> usize {
        self.box_dims.iter().product::<u32>() as usize * self.element_bytes as usize
    }

    /// Byte by byte.
    fn expected(&self, memory: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.box_bytes()];
        let row_bytes = (self.box_dims[0] * self.element_bytes) as usize;
        for i in 0..out.len() {
            let mut element = i / self.element_bytes as usize;
            let mut from = Some(i % self.element_bytes as usize);
            for (d, &size) in self.box_dims.iter().enumerate() {
                let x = i64::from(self.at[d]) + (element % size as usize) as i64;
                element /= size as usize;
                let stride = if d == 0 { u64::from(self.element_bytes) } else { self.strides_bytes[d - 1] };
                let inside = (0..self.dims[d] as i64).contains(&x);
                from = from.filter(|_| inside).map(|from| from + x as usize * stride as usize);
            }
            // CUTLASS calls this one Swizzle<3, 4, 3>.
            let to = if self.swizzle == Swizzle::B128 { i ^ ((i / row_bytes) % 8) << 4 } else { i };
            out[to] = from.map_or(0, |from| memory[from]);
        }
        out
    }

    fn run(&self, source: &str, options: MachineOptions) -> Result<(Vec<u8>, Vec<u8>), RunError> {
        let memory: Vec<u8> = (0..self.extent()).map(|i| (i * 31 + i / 251 + 1) as u8).collect();
        let mut rig = Rig::of(source, options);
        let address = rig.upload(&memory, "tensor");
        let Self { element_bytes, dims, strides_bytes, box_dims, swizzle, .. } = self.clone();
        let map = TensorMap { address, element_bytes, dims, strides_bytes, box_dims, swizzle };
        let found = self.run_with(&mut rig, &map.encode().unwrap())?;
        Ok((found, self.expected(&memory)))
    }

    /// With this map; what the tile has as far as the box.
    fn run_with(&self, rig: &mut Rig, map: &[u8]) -> Result<Vec<u8>, RunError> {
        let out = rig.upload(&[0; TILE_BYTES], "out");
        let mut params = map.to_vec();
        params.extend(out.to_le_bytes());
        params.extend((0..5).flat_map(|d| self.at.get(d).unwrap_or(&0).to_le_bytes()));
        params.extend((self.box_bytes().min(TILE_BYTES) as u32 / 4).to_le_bytes());
        rig.run("k", [1, 1, 1], [THREADS, 1, 1], 0, &params)?;
        Ok(rig.download(out, self.box_bytes().min(TILE_BYTES)))
    }
}

/// Weights of a product: row 32q + 8t + 2j + e of 72 columns comes to row 32q + 8j + 2t + e of the box.
fn permuted() -> Tensor {
    let row = 144;
    Tensor {
        element_bytes: 2,
        dims: vec![72, 2, 4, 4, 3],
        strides_bytes: vec![row, 8 * row, 2 * row, 32 * row],
        box_dims: vec![64, 2, 4, 2, 2],
        at: vec![64, 0, 0, 2, 2],
        swizzle: Swizzle::B128,
    }
}

fn plane() -> Tensor {
    Tensor {
        element_bytes: 2,
        dims: vec![64, 9],
        strides_bytes: vec![160],
        box_dims: vec![64, 8],
        at: vec![0, 0],
        swizzle: Swizzle::B128,
    }
}

fn tensors() -> impl Strategy<Value = Tensor> {
    let dimension = (1..5_u64, 1..4_u32, -3..4_i32, 0..3_u64);
    let inner = (1..200_u64, -70..140_i32, any::<bool>());
    (0..4_u32, inner, prop::collection::vec(dimension, 0..5)).prop_map(|(log, (n, at, swizzles), outer)| {
        let element_bytes = 1 << log;
        let row_bytes: u32 = if swizzles { 128 } else { 48 };
        let mut tensor = Tensor {
            element_bytes,
            dims: vec![n],
            strides_bytes: vec![],
            box_dims: vec![row_bytes / element_bytes],
            at: vec![at],
            swizzle: if swizzles { Swizzle::B128 } else { Swizzle::None },
        };
        let mut stride = (n * u64::from(element_bytes)).next_multiple_of(16);
        for (n, size, at, pad) in outer {
            let fits = tensor.box_bytes() * size as usize <= TILE_BYTES;
            tensor.strides_bytes.push(stride + 16 * pad);
            tensor.dims.push(n);
            tensor.box_dims.push(if fits { size } else { 1 });
            tensor.at.push(at);
            stride = (stride + 16 * pad) * n;
        }
        tensor
    })
}

proptest! {
    #[test]
    fn boxes_are_those_of_plain_loops(tensor in tensors(), seed in 0..1000_u64, race: bool) {
        let source = kernel(&one_copy(tensor.dims.len(), tensor.box_bytes()));
        let (found, expected) = tensor.run(&source, options(Policy::Random, seed, race)).unwrap();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn rows_are_permuted_by_five_dimensions() {
    let tensor = permuted();
    let source = kernel(&one_copy(5, tensor.box_bytes()));
    for policy in POLICIES {
        let (found, expected) = tensor.run(&source, options(policy, 1, true)).unwrap();
        assert_eq!(found, expected);
        // Of 72 columns 64 to 71 exist, in the first unit; of j 2 and 3; of q 2 alone.
        let row = |j: usize, t: usize, e: usize| 64 + 8 * t + 2 * (j + 2) + e;
        let (j, t, e) = (1, 3, 1);
        let line = 8 * j + 2 * t + e;
        let unit = line * 128 + ((line % 8) << 4);
        let from = row(j, t, e) * 144 + 128;
        let byte = |i: usize| (i * 31 + i / 251 + 1) as u8;
        assert_eq!(found[unit], byte(from));
        assert!(found[16 * 128..].iter().all(|&byte| byte == 0));
    }
}

fn fault(error: RunError) -> Report {
    match error {
        RunError::Fault(report) => *report,
        other => panic!("no fault: {other}"),
    }
}

/// What one copy of `tensor` ends with.
fn failure(tensor: &Tensor, body: &str, options: MachineOptions) -> RunError {
    tensor.run(&kernel(body), options).expect_err("must fail")
}

#[test]
fn bytes_that_nobody_copies_are_waited_for_in_vain() {
    let tensor = plane();
    for policy in POLICIES {
        // A box beyond the tensor counts in full; 16 bytes more or less never come.
        for expected in [tensor.box_bytes() + 16, tensor.box_bytes() - 16] {
            let error = failure(&tensor, &one_copy(2, expected), options(policy, 1, false));
            assert!(matches!(error, RunError::Deadlock(_)), "{error}");
            let missing =
                if expected > tensor.box_bytes() { "16 bytes are missing" } else { "-16 bytes are missing" };
            assert!(error.to_string().contains(missing), "{error}");
        }
    }
}

/// The tile is read for one of two boxes while the other one is on its way.
#[test]
fn a_phase_that_counts_one_of_two_boxes_ends_too_early() {
    let (tensor, copy) = (plane(), copy(2));
    let body = |bytes: usize| {
        format!(
            "@!%first bra WAIT;
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], {bytes};
            {copy} add.u32 %tile, %tile, 2048; {copy} sub.u32 %tile, %tile, 2048;
            {WAIT}
            READ; add.u32 %tile, %tile, 2048; READ;"
        )
    };
    for policy in POLICIES {
        for seed in 0..10 {
            tensor.run(&kernel(&body(2 * tensor.box_bytes())), options(policy, seed, true)).unwrap();
        }
    }
    let early =
        |seed| tensor.run(&kernel(&body(tensor.box_bytes())), options(Policy::Random, seed, true)).is_err();
    assert!((0..10).all(early));
}

#[test]
fn a_stage_is_not_filled_again_before_it_is_empty() {
    let (tensor, copy) = (plane(), copy(2));
    let bytes = tensor.box_bytes();
    let body = |until_empty: &str| {
        format!(
            "@!%first bra WAIT;
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], {bytes}; {copy}
            {WAIT}
            READ;
            mbarrier.arrive.shared::cta.b64 _, [%empty];
            @!%first bra SECOND;
            {until_empty}
            mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], {bytes}; {copy}
            SECOND: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%full], 1; @!%p1 bra SECOND;"
        )
    };
    let sound = "EMPTY: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%empty], 0; @!%p2 bra EMPTY;";
    for policy in POLICIES {
        let (found, expected) = tensor.run(&kernel(&body(sound)), options(policy, 3, true)).unwrap();
        assert_eq!(found, expected);
        let report = fault(failure(&tensor, &body(""), options(policy, 3, true)));
        let other = report.other.as_ref().expect("the other side");
        let texts = [&report.place.text, &other.text];
        assert!(texts.iter().any(|text| text.starts_with("cp.async.bulk.tensor")), "{report}");
        assert!(texts.iter().any(|text| text.starts_with("ld.shared")), "{report}");
    }
}

#[test]
fn boxes_that_are_too_large_or_lie_askew_are_faults() {
    let mut tensor = plane();
    tensor.box_dims = vec![64, 33];
    let report =
        fault(failure(&tensor, &one_copy(2, tensor.box_bytes()), options(Policy::RoundRobin, 1, false)));
    assert!(
        matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::OutOfBounds { .. })),
        "{report}"
    );
    assert!(report.place.text.starts_with("cp.async.bulk.tensor"), "{report}");

    let askew = one_copy(2, 1024).replace("prefetch.tensormap [%map];", "add.u32 %tile, %tile, 64;");
    let report = fault(failure(&plane(), &askew, options(Policy::RoundRobin, 1, false)));
    assert!(report.to_string().contains("a box lies at a multiple of 128"), "{report}");
}

#[test]
fn a_tensor_that_is_larger_than_its_memory_is_read_out_of_bounds() {
    let mut rig = Rig::of(&kernel(&one_copy(2, 1024)), MachineOptions::default());
    let address = rig.upload(&[1; 7 * 160 + 128 - 2], "tensor");
    let Tensor { element_bytes, dims, strides_bytes, box_dims, swizzle, .. } = plane();
    let map = TensorMap { address, element_bytes, dims, strides_bytes, box_dims, swizzle };
    let report = fault(plane().run_with(&mut rig, &map.encode().unwrap()).unwrap_err());
    assert!(
        matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::OutOfBounds { .. })),
        "{report}"
    );
}

#[test]
fn maps_are_what_was_encoded_where_they_lie() {
    let map = |change: &dyn Fn(&mut TensorMap)| {
        let Tensor { element_bytes, dims, strides_bytes, box_dims, swizzle, .. } = plane();
        let mut map = TensorMap { address: 256, element_bytes, dims, strides_bytes, box_dims, swizzle };
        change(&mut map);
        map.encode().unwrap()
    };
    let message = |body: &str, map: &[u8]| {
        let mut rig = Rig::of(&kernel(body), MachineOptions::default());
        fault(plane().run_with(&mut rig, map).unwrap_err()).to_string()
    };
    let body = one_copy(2, 1024);
    let whole = map(&|_| ());
    assert!(message(&body, &[0; 128]).contains("no tensor map was encoded there"));
    assert!(message(&body.replace("[%map, ", "[%map+32, "), &whole).contains("not a multiple of 64"));
    let line = map(&|map| {
        map.dims.pop();
        map.strides_bytes.pop();
        map.box_dims.pop();
    });
    assert!(message(&body, &line).contains("not as many dimensions as the instruction"));
}
