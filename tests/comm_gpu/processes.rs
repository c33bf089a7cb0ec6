//! Ranks that are processes over NVSHMEM, a GPU each. The test starts itself once for each rank.
//!
//! Needs two GPUs and NVSHMEM's host library; what puts needs the kernels that `fewsync build-kernels` makes. A missing
//! part is named and skipped, or with FEWSYNC_REQUIRE_NVSHMEM=1 a failure.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use fewsync::comm::bootstrap::{Bootstrap, Mesh, MeshOptions};
use fewsync::comm::gpu::nvshmem::{HEAP_BYTES, NvshmemHeap};
use fewsync::comm::gpu::{GpuComm, GroupOptions, PeerMemory};
use fewsync::comm::{AllGather, CommError, Communicator, DType, Phase, Shape, Stage};
use fewsync::driver::{Device, KernelLibrary};
use fewsync::selftest::reference::sum_of_ranks;
use half::bf16;

use crate::gpu::gpus;
use crate::soak::many_calls;
use crate::{FIRST_SEQUENCE, Result, alternate, assert_bits, contribution, read, sum, write};

/// `scenario rank port`, for a child.
const CHILD: &str = "FEWSYNC_TEST_PROCESS";
const WORLD: usize = 2;
/// Each GPU a node.
const NODES: Shape = Shape { nodes: WORLD, gpus_per_node: 1 };
/// Longest wait of a kernel for a peer that is stopped or gone.
const SHORT: Duration = Duration::from_secs(2);
/// What a child says that is about to call again and again.
const CALLING: &str = "calling";
/// What children say where a part is missing.
const MISSING: &str = "missing: ";

/// The children of a scenario, one for each rank.
struct Processes(Vec<Child>);

impl Processes {
    fn start(scenario: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let child = |rank: usize| {
            Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", "processes::child", "--nocapture"])
                .env(CHILD, format!("{scenario} {rank} {port}"))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a process")
        };
        Self((0..WORLD).map(child).collect())
    }

    /// What each said; ends those that take more than a minute.
    fn finish(mut self) -> Vec<Output> {
        let end = Instant::now() + Duration::from_secs(60);
        let finish = |mut child: Child| {
            while child.try_wait().expect("a child").is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(child.kill());
            child.wait_with_output().expect("its output")
        };
        std::mem::take(&mut self.0).into_iter().map(finish).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// The machine's GPUs, for one test at a time, if there are two.
fn pair(test: &str) -> Option<MutexGuard<'static, ()>> {
    gpus(test, WORLD as u32).map(|(guard, _)| guard)
}

/// Runs a scenario that is to succeed on all ranks.
fn succeed(scenario: &str) {
    let Some(_guard) = pair(scenario) else { return };
    for (rank, output) in Processes::start(scenario).finish().iter().enumerate() {
        let said = text(output);
        if let Some((_, what)) = said.split_once(MISSING) {
            let what = what.lines().next().unwrap_or_default();
            println!("{scenario}: skipped, {what}");
            assert!(std::env::var_os("FEWSYNC_REQUIRE_NVSHMEM").is_none(), "{what}");
            return;
        }
        assert!(output.status.success(), "{scenario}, rank {rank}: {said}");
        for line in said.lines().filter(|line| line.starts_with(scenario)) {
            println!("rank {rank}: {line}");
        }
    }
}

#[test]
fn stores_and_puts_are_exact_over_sizes_types_and_kinds() {
    succeed("exact stores");
    succeed("exact puts");
}

/// FEWSYNC_SOAK calls, by default 20,000, alternating in size.
#[test]
fn puts_follow_each_other_for_long() {
    succeed("soak puts");
}

#[test]
fn calls_that_differ_are_a_mismatch_on_both() {
    succeed("mismatch puts");
}

/// A rank that is killed, and one that is stopped: the other one ends within the limit and names it.
#[test]
fn a_dead_or_stopped_rank_is_named_in_time() {
    for (scenario, signal) in [("lost stores", "KILL"), ("lost puts", "KILL"), ("lost puts", "STOP")] {
        let Some(_guard) = pair(scenario) else { return };
        let mut processes = Processes::start(scenario);
        let mut lines = BufReader::new(processes.0[0].stdout.take().expect("a pipe")).lines();
        if !lines.by_ref().map_while(std::io::Result::ok).any(|line| line.starts_with(CALLING)) {
            let said = text(&processes.finish().remove(0));
            assert!(said.contains(MISSING), "{scenario}: {said}");
            println!("{scenario}: skipped, {said}");
            continue;
        }
        let victim = processes.0[1].id().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &victim]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{signal}");
        let begin = Instant::now();
        let said: String = lines.map_while(std::io::Result::ok).map(|line| line + "\n").collect();
        assert!(
            begin.elapsed() < SHORT + Duration::from_secs(5),
            "{scenario} {signal}: {:?}",
            begin.elapsed()
        );
        let named = said.lines().find(|line| line.starts_with("lost")).unwrap_or_else(|| panic!("{said}"));
        assert!(named.contains("rank 1"), "{named}");
        println!("{scenario} {signal} after {:?}: {named}", begin.elapsed());
    }
}

/// A rank of the scenario that the environment names; nothing where it names none.
#[test]
fn child() -> Result {
    let Ok(task) = std::env::var(CHILD) else { return Ok(()) };
    let words: Vec<&str> = task.split(' ').collect();
    let [scenario, way, rank, port] = words[..] else { panic!("{task}") };
    let (rank, address) = (rank.parse().expect("a rank"), format!("127.0.0.1:{port}"));
    let limit = Duration::from_secs(30);
    let options =
        MeshOptions { start_limit: limit, meeting_limit: Some(limit), silence_limit: SHORT.max(limit) };
    let mesh: Arc<dyn Bootstrap> =
        Arc::new(Mesh::connect(&address, rank, WORLD, options).unwrap_or_else(|error| panic!("{error}")));
    let device = Device::cuda(rank as u32)?;
    let library = Arc::new(KernelLibrary::load(&device)?);
    let direct = way == "stores";
    let options = GroupOptions {
        memory: PeerMemory::Nvshmem { direct },
        time_limit: SHORT,
        meeting_limit: Some(limit),
        first_sequence: FIRST_SEQUENCE,
        ..GroupOptions::default()
    };
    let found = NvshmemHeap::new(&device, &*mesh, HEAP_BYTES, Some(limit));
    let heap = Arc::new(found.unwrap_or_else(|error| panic!("{MISSING}{error}")));
    let made = GpuComm::in_processes(&library, NODES, options, mesh, heap);
    let comm = made.unwrap_or_else(|error| panic!("{MISSING}{error}"));
    match scenario {
        "exact" => exact(&comm, &library),
        "soak" => many_calls("soak puts", &comm, &library.device().stream()?, NODES),
        "mismatch" => mismatch(&comm, &library),
        "lost" => lost(&comm, &library),
        other => panic!("no scenario {other}"),
    }
}

/// Sums of all sizes and types, phases, gathers, two buffers of two groups at once.
fn exact(comm: &GpuComm, library: &KernelLibrary) -> Result {
    let stream = library.device().stream()?;
    alternate::<bf16>(comm, NODES, &stream)?;
    alternate::<half::f16>(comm, NODES, &stream)?;
    alternate::<f32>(comm, NODES, &stream)?;

    let rank = comm.topology().rank;
    const MOST: usize = 5_000_000;
    let mut buf = comm.register(MOST * 4)?;
    for (call, numel) in [MOST, 100_000, 1].into_iter().enumerate() {
        let of_rank: Vec<Vec<f32>> = (0..WORLD).map(|rank| contribution(rank, numel, call)).collect();
        write(&buf, &of_rank[rank], &stream)?;
        for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
            comm.enqueue_stage(&stream, Stage { phase, buf: &mut buf, numel, dtype: DType::F32 })?;
        }
        assert_bits(&read::<f32>(comm, &buf, numel, &stream)?, &sum_of_ranks(NODES, &of_rank), "phases");
        for cut in [0, 1, numel / 3, numel] {
            write(&buf, &of_rank[rank], &stream)?;
            let offsets = [0, cut, numel];
            comm.enqueue_gather(&stream, AllGather { buf: &mut buf, offsets: &offsets, dtype: DType::F32 })?;
            let expected = [&of_rank[0][..cut], &of_rank[1][cut..]].concat();
            assert_bits(&read::<f32>(comm, &buf, numel, &stream)?, &expected, &format!("cut at {cut}"));
        }
    }

    let second = comm.split(7, 1 - rank)?;
    assert_eq!(second.topology().rank, 1 - rank);
    let alone = comm.split(rank, 0)?;
    assert_eq!(alone.topology().world(), 1);
    let other_stream = library.device().stream()?;
    const NUMEL: usize = 100_000;
    let mut bufs = [comm.register(NUMEL * 4)?, second.register(NUMEL * 4)?];
    for (i, buf) in bufs.iter().enumerate() {
        write(buf, &contribution::<f32>(rank, NUMEL, i), &stream)?;
    }
    sum(comm, &mut bufs[0], NUMEL, DType::F32, &stream)?;
    sum(&second, &mut bufs[1], NUMEL, DType::F32, &other_stream)?;
    other_stream.synchronize()?;
    for (i, buf) in bufs.iter().enumerate() {
        let of_rank: Vec<Vec<f32>> = (0..WORLD).map(|rank| contribution(rank, NUMEL, i)).collect();
        assert_bits(&read::<f32>(comm, buf, NUMEL, &stream)?, &sum_of_ranks(NODES, &of_rank), "two buffers");
    }
    Ok(())
}

/// Both ranks learn both calls, soon.
fn mismatch(comm: &GpuComm, library: &KernelLibrary) -> Result {
    let (rank, stream) = (comm.topology().rank, library.device().stream()?);
    let mut buf = comm.register(1 << 20)?;
    let begin = Instant::now();
    sum(comm, &mut buf, [9, 200_000][rank], DType::F32, &stream)?;
    stream.synchronize()?;
    assert!(begin.elapsed() < SHORT, "{:?}", begin.elapsed());
    match comm.check() {
        Err(CommError::Mismatch { rank: noticed, peer, expected, found, .. }) => {
            assert_eq!((noticed, peer), (rank, 1 - rank));
            assert_eq!((expected.numel, found.numel), ([9, 200_000][rank], [200_000, 9][rank]));
        }
        // The other rank was quicker to tell than this rank's kernel.
        Err(CommError::PeerFailed { peer, .. }) => assert_eq!(peer, 1 - rank),
        other => panic!("{other:?}"),
    }
    Ok(())
}

/// Calls until a peer is gone, and says what is wrong then.
fn lost(comm: &GpuComm, library: &KernelLibrary) -> Result {
    let stream = library.device().stream()?;
    let mut buf = comm.register(1 << 20)?;
    let end = Instant::now() + Duration::from_secs(40);
    sum(comm, &mut buf, 5000, DType::Bf16, &stream)?;
    stream.synchronize()?;
    println!("{CALLING}");
    let error = loop {
        assert!(Instant::now() < end, "nobody was lost");
        let run = sum(comm, &mut buf, 5000, DType::Bf16, &stream)
            .and_then(|()| Ok(stream.synchronize()?))
            .and_then(|()| comm.check());
        if let Err(error) = run {
            break error;
        }
    };
    println!("lost: {error}");
    Ok(())
}
