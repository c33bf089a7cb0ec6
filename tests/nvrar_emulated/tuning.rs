//! `tune allreduce` by ranks that are PEs, each a thread, which meet over TCP as processes do. The tuner itself checks
//! every candidate's sum, element by element, before it times it.

use std::sync::Arc;

use fewsync::bench::allreduce::contest::Sweep;
use fewsync::bench::allreduce::race::Effort;
use fewsync::bench::allreduce::setup::Setup;
use fewsync::bench::allreduce::tune::{Found, Tuned, tune_in_processes};
use fewsync::bench::allreduce::tuning_file::TuningFile;
use fewsync::bench::allreduce::{AllReduceBenchError, Call, Launching};
use fewsync::comm::bootstrap::{Bootstrap, Listener, Mesh, MeshOptions};
use fewsync::comm::gpu::{GpuComm, GroupOptions, PeerMemory};
use fewsync::comm::{Communicator, DType, Shape};
use fewsync::driver::{EmulatorOptions, KernelLibrary, PutUnit};
use fewsync::kernels::Ptx;

use crate::mutations::Mutation;
use crate::pes::{Heap, machine};
use crate::puts::{keep_all_loaded, shipped as puts};
use crate::schedules::shipped;

const ARCH: &str = "sm_90a";

type Pe = (Arc<KernelLibrary>, Arc<Heap>);

/// Calls `f` for each rank, in a thread of its own.
fn on_all<T: Send>(pes: &[Pe], f: impl Fn(&Pe, &Arc<Mesh>) -> T + Sync) -> Vec<T> {
    let listener = Listener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("127.0.0.1:{}", listener.port().expect("its port"));
    let (world, options) = (pes.len(), MeshOptions::default);
    std::thread::scope(|scope| {
        let (f, address) = (&f, &address);
        let mut host = Some(listener);
        let start = |(rank, pe)| {
            let host = host.take();
            scope.spawn(move || {
                let mesh = match host {
                    Some(listener) => Mesh::host(listener, world, options()),
                    None => Mesh::join(address, rank, world, options()),
                };
                f(pe, &Arc::new(mesh.expect("all ranks come")))
            })
        };
        let threads: Vec<_> = pes.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn sweep(shape: Shape) -> Sweep {
    Sweep {
        shape,
        dtype: DType::Bf16,
        sizes: vec![512, 40 << 10],
        calls: vec![Call::Plain, Call::Fused],
        launching: vec![Launching::Graph],
        hidden: vec![1024],
        tokens: vec![1, 3],
    }
}

/// The devices of `shape`, of which so many in a row store to each other; `puts` is the file of a rank's kernels that put.
fn pes(shape: Shape, reach: usize, puts: impl Fn(usize) -> &'static Ptx) -> Vec<Pe> {
    let options = EmulatorOptions { devices: shape.world() as u32, ..EmulatorOptions::default() };
    machine(&options, reach, |rank| [shipped(ARCH), puts(rank)], PutUnit::B8, true).expect("a machine")
}

fn communicator((kernels, heap): &Pe, mesh: &Arc<Mesh>, shape: Shape, options: GroupOptions) -> GpuComm {
    let (mesh, heap) = (Arc::<Mesh>::clone(mesh), Arc::<Heap>::clone(heap));
    GpuComm::in_processes(kernels, shape, options, mesh, heap).expect("a communicator")
}

/// What every rank finds.
fn tune(shape: Shape, reach: usize, memory: PeerMemory) -> Vec<(Setup, Found)> {
    on_all(&pes(shape, reach, |_| puts(ARCH)), |pe, mesh| {
        let options = GroupOptions { memory, ..GroupOptions::default() };
        let setup = Setup::of_processes(&**mesh, pe.0.device(), shape, memory).expect("all have a GPU");
        let comm = communicator(pe, mesh, shape, options.clone());
        let found = tune_in_processes(comm, &pe.0, &sweep(shape), Effort::LEAST, &**mesh, |_| {});
        let found = found.unwrap_or_else(|error| panic!("{error}"));

        // A communicator that is given the file does what was found.
        let file = TuningFile::new(setup.clone(), &found.0);
        let table = file.table("t.json".as_ref(), &setup).expect("the same setup");
        let comm = communicator(pe, mesh, shape, GroupOptions { table: Some(Arc::new(table)), ..options });
        let buf = comm.register(40 << 10).expect("room");
        for Tuned { measured, .. } in &found.0 {
            let numel = measured.bytes / measured.dtype.size_bytes();
            let used = comm.tuning_of(&buf, (numel, measured.dtype), measured.hidden);
            assert_eq!(used.expect("a sum"), measured.tuning, "{} bytes", measured.bytes);
        }
        (setup, found)
    })
}

/// Ranks agree, and what is measured is (call, bytes, row) of each.
#[track_caller]
fn assert_alike(all: &[(Setup, Found)], expected: &[(Call, usize, usize)]) {
    let (setup, (found, lines)) = &all[0];
    let file = TuningFile::new(setup.clone(), found).text();
    for (rank, (setup, (found, other))) in all.iter().enumerate() {
        assert_eq!(TuningFile::new(setup.clone(), found).text(), file, "rank {rank}");
        assert_eq!(other, lines, "rank {rank}");
    }
    let mut tensors: Vec<_> = lines.iter().map(|line| (line.call, line.bytes, line.hidden)).collect();
    tensors.dedup();
    assert_eq!(tensors, expected);
    for tuned in found {
        let Tuned { measured, candidates, .. } = tuned;
        let row = measured.hidden.unwrap_or(0);
        let lines = lines.iter().filter(|line| (line.bytes, line.hidden) == (measured.bytes, row));
        assert_eq!(lines.count(), *candidates, "{tuned:?}");
    }
    assert!(found.iter().any(|tuned| tuned.candidates > 10), "{found:?}");
}

/// Messages between nodes are put, in words alone; residual and norm have a launch of their own.
#[test]
fn every_candidate_that_is_put_sums_exactly() {
    let _loaded = keep_all_loaded();
    for (nodes, gpus_per_node, direct) in [(2, 1, false), (3, 1, true), (2, 2, false)] {
        let all = tune(Shape { nodes, gpus_per_node }, gpus_per_node, PeerMemory::Nvshmem { direct });
        assert_alike(&all, &[512, 2048, 6144, 40 << 10].map(|bytes| (Call::Plain, bytes, 0)));
        let lines = &all[0].1.1;
        assert!(lines.iter().all(|line| line.variant.starts_with("two-shot words ")), "{lines:?}");
        let longest: Vec<_> = lines.iter().filter(|line| line.bytes == 40 << 10).collect();
        for grid in ["1 blocks 256 workers", "8 blocks 64 workers"] {
            assert!(longest.iter().any(|line| line.variant.ends_with(grid)), "{grid}: {longest:?}");
        }
    }
}

/// Where all ranks store to each other, fused calls have choices of their own.
#[test]
fn every_candidate_that_is_stored_sums_exactly() {
    let _loaded = keep_all_loaded();
    let all = tune(Shape { nodes: 2, gpus_per_node: 1 }, 2, PeerMemory::Nvshmem { direct: true });
    let plain = [512, 2048, 6144, 40 << 10].map(|bytes| (Call::Plain, bytes, 0));
    let fused = [2048, 6144].map(|bytes| (Call::Fused, bytes, 1024));
    assert_alike(&all, &[&plain[..], &fused].concat());
    let lines = &all[0].1.1;
    for part in ["cells", "words", "2 row blocks"] {
        assert!(lines.iter().any(|line| line.variant.contains(part)), "{part}");
    }
}

const SUBTRACTS: Mutation = Mutation {
    what: "sums are differences",
    edit: |_, line| line.strip_prefix("add.rn.f32").map(|operands| format!("sub.rn.f32{operands}")),
    concerns: |_| true,
};

/// Nothing is measured of a sum that is wrong, be it on one rank alone; the others end, too.
#[test]
fn a_wrong_sum_of_one_rank_ends_all() {
    let _loaded = keep_all_loaded();
    let (wrong, places) = SUBTRACTS.of(puts(ARCH), |entry| entry.contains("bf16"));
    assert!(places > 0, "{}", SUBTRACTS.what);
    let shape = Shape { nodes: 2, gpus_per_node: 1 };
    let pes = pes(shape, 1, |rank| if rank == 1 { wrong } else { puts(ARCH) });
    let errors = on_all(&pes, |pe, mesh| {
        let memory = PeerMemory::Nvshmem { direct: false };
        let comm = communicator(pe, mesh, shape, GroupOptions { memory, ..GroupOptions::default() });
        let done = |tuned: &Tuned| panic!("{tuned:?}");
        let error = tune_in_processes(comm, &pe.0, &sweep(shape), Effort::LEAST, &**mesh, done);
        let error = error.map(drop).expect_err("one rank subtracts");
        // As a process does before it ends.
        mesh.fail(&error.to_string(), None);
        error
    });
    assert!(matches!(&errors[1], AllReduceBenchError::Wrong { rank: 1, .. }), "{}", errors[1]);
    let AllReduceBenchError::Comm(other) = &errors[0] else { panic!("{}", errors[0]) };
    assert_eq!(other.blames(), Some(1), "{other}");
}
