//! Ranks that are missing, late or in another call.

use std::time::{Duration, Instant};

use fewsync::comm::gpu::{GpuComm, GroupOptions, PeerMemory};
use fewsync::comm::{CommError, Communicator, DType};
use half::bf16;

use crate::gpu::gpu;
use crate::{FIRST_SEQUENCE, ONE_NODE, Result, assert_bits, on_ranks, options, pair, read, sum, write};

const SHORT: Duration = Duration::from_millis(200);

/// A rank that does not call: the other one names it within the limit, and both refuse further calls.
#[test]
fn a_missing_rank_is_named_in_time() -> Result {
    let Some((_guard, _)) = gpu("missing rank") else { return Ok(()) };
    let Some(libraries) = pair("missing rank") else { return Ok(()) };
    for memory in [PeerMemory::Direct, PeerMemory::HostStaged] {
        let options = GroupOptions { time_limit: SHORT, memory, ..options() };
        let comms = GpuComm::group_with(libraries, ONE_NODE, options)?;
        let errors = on_ranks(comms, |comm, stream| -> Result<String> {
            let mut buf = comm.register(1 << 20)?;
            if comm.topology().rank == 1 {
                // Not a call in sight.
                let start = Instant::now();
                while comm.check().is_ok() && start.elapsed() < 20 * SHORT {
                    std::thread::sleep(SHORT / 20);
                }
                return Ok(comm.check().expect_err("the other rank has failed").to_string());
            }
            let start = Instant::now();
            for numel in [64, 200_000] {
                // A graph's later calls must not wait again.
                sum(&comm, &mut buf, numel, DType::Bf16, &stream)?;
            }
            stream.synchronize()?;
            assert!(start.elapsed() >= SHORT && start.elapsed() < 2 * SHORT, "{:?}", start.elapsed());
            let error = comm.check().expect_err("a rank is missing");
            assert_eq!(
                sum(&comm, &mut buf, 1, DType::Bf16, &stream),
                Err(error.clone()),
                "refused from now on"
            );
            Ok(error.to_string())
        });
        let [waited, told] =
            <[_; 2]>::try_from(errors.into_iter().collect::<Result<Vec<_>>>()?).expect("two ranks");
        println!("missing rank, {memory:?}: {waited}");
        let expected = format!(
            "rank 0 waited 200ms for rank 1 in reduce, step 0: expected sequence {FIRST_SEQUENCE}, last seen 0;"
        );
        assert!(waited.starts_with(&expected), "{waited}");
        assert!(told.starts_with("rank 1 cannot go on because rank 0 failed: rank 0 waited"), "{told}");
    }
    Ok(())
}

/// A rank that comes late but in time is no failure.
#[test]
fn a_late_rank_is_awaited() -> Result {
    let Some((_guard, _)) = gpu("late rank") else { return Ok(()) };
    let Some(libraries) = pair("late rank") else { return Ok(()) };
    let comms = GpuComm::group_with(libraries, ONE_NODE, options())?;
    let results = on_ranks(comms, |comm, stream| -> Result {
        let mut buf = comm.register(1 << 20)?;
        write(&buf, &[bf16::ONE; 5000], &stream)?;
        if comm.topology().rank == 1 {
            std::thread::sleep(SHORT);
        }
        sum(&comm, &mut buf, 5000, DType::Bf16, &stream)?;
        assert_bits(&read::<bf16>(&comm, &buf, 5000, &stream)?, &[bf16::from_f32(2.0); 5000], "the sum");
        Ok(())
    });
    results.into_iter().collect()
}

/// Ranks in different calls: both calls are named, nobody waits for long.
#[test]
fn other_sizes_and_types_are_a_mismatch() -> Result {
    let Some((_guard, _)) = gpu("mismatch") else { return Ok(()) };
    let Some(libraries) = pair("mismatch") else { return Ok(()) };
    let cases = [
        [(64, DType::Bf16), (96, DType::Bf16)],
        [(64, DType::Bf16), (64, DType::F16)],
        [(9, DType::F32), (200_000, DType::F32)],
    ];
    for case in cases {
        let comms = GpuComm::group_with(libraries, ONE_NODE, options())?;
        let errors = on_ranks(comms, |comm, stream| -> Result<CommError> {
            let mut buf = comm.register(1 << 20)?;
            let (numel, dtype) = case[comm.topology().rank];
            let start = Instant::now();
            sum(&comm, &mut buf, numel, dtype, &stream)?;
            stream.synchronize()?;
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
            Ok(comm.check().expect_err("the other rank is in another call"))
        });
        for (rank, error) in errors.into_iter().enumerate() {
            let error = error?;
            println!("mismatch: {error}");
            let CommError::Mismatch { rank: noticed, peer, expected, found, .. } = error else {
                panic!("rank {rank}: {error}");
            };
            assert_eq!((noticed, peer), (rank, 1 - rank));
            assert_eq!((expected.numel, expected.dtype), case[rank]);
            assert_eq!((found.numel, found.dtype), case[1 - rank]);
        }
    }
    Ok(())
}
