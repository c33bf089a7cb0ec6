//! Many calls in a row, each looked at.

use std::time::Instant;

use fewsync::comm::gpu::GpuComm;
use fewsync::comm::{Communicator, DType, Shape};
use fewsync::driver::{DevicePtr, Stream};
use fewsync::selftest::reference::sum_of_ranks;

use crate::gpu::gpu;
use crate::{ONE_NODE, Result, assert_bits, contribution, on_ranks, options, pair, sum};

/// So many calls, unless FEWSYNC_SOAK says how many.
pub(crate) fn calls(otherwise: usize) -> usize {
    std::env::var("FEWSYNC_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// 20,000 calls are enough to lap every slot many times.
#[test]
fn calls_follow_each_other_for_long() -> Result {
    let Some((_guard, _)) = gpu("soak") else { return Ok(()) };
    let Some(libraries) = pair("soak") else { return Ok(()) };
    let comms = GpuComm::group_with(libraries, ONE_NODE, options())?;
    on_ranks(comms, |comm, stream| many_calls("soak", &comm, &stream, ONE_NODE)).into_iter().collect()
}

/// Calls of changing sizes, captured and replayed. Each has a tensor of its own in turn, so that what an earlier call
/// left is never what this one should give, and what each leaves is kept and compared.
pub(crate) fn many_calls(test: &str, comm: &GpuComm, stream: &Stream, shape: Shape) -> Result {
    const PER_GRAPH: usize = 100;
    const NUMEL: usize = 9000;
    const KINDS: usize = 7;
    let (calls, start) = (calls(20_000), Instant::now());
    let rank = comm.topology().rank;
    let mut buf = comm.register(NUMEL * 4)?;
    let numels = [NUMEL, 8, 2048, 1, 4097];
    let brought = |rank: usize, call: usize| contribution::<f32>(rank, NUMEL, call % KINDS);
    let sources: Vec<f32> = (0..KINDS).flat_map(|kind| brought(rank, kind)).collect();
    let source = stream.device().upload(&sources, stream)?;
    let log = stream.device().allocate_zeroed::<f32>(PER_GRAPH * NUMEL, stream)?;
    let mut expected = Vec::new();
    for call in 0..PER_GRAPH {
        let of_rank: Vec<_> = (0..shape.world()).map(|rank| brought(rank, call)).collect();
        let numel = numels[call % numels.len()];
        expected.extend(&sum_of_ranks(shape, &of_rank)[..numel]);
        expected.extend(&of_rank[rank][numel..]);
    }
    let graph = stream.capture(|| -> Result {
        let copy = |to: DevicePtr, from: DevicePtr| -> Result {
            // SAFETY: both have that many elements and live until the stream has been waited for.
            unsafe { stream.device().gpu().copy_d2d(stream.id(), to, from, NUMEL * 4)? };
            Ok(())
        };
        let data = DevicePtr(buf.addr::<u8>().raw());
        for call in 0..PER_GRAPH {
            copy(data, source.ptr_at(call % KINDS * NUMEL))?;
            sum(comm, &mut buf, numels[call % numels.len()], DType::F32, stream)?;
            copy(log.ptr_at(call * NUMEL), data)?;
        }
        sum(comm, &mut buf, 0, DType::F32, stream)
    })?;
    for replay in 0..calls.div_ceil(PER_GRAPH) {
        // SAFETY: all that the graph refers to is alive until the stream has been waited for.
        unsafe { graph.launch(stream)? };
        let found = log.download(stream)?;
        if bytemuck::cast_slice::<_, u8>(&found) != bytemuck::cast_slice::<_, u8>(&expected) {
            comm.check()?;
            assert_bits(&found, &expected, &format!("replay {replay}"));
        }
    }
    stream.synchronize()?;
    comm.check()?;
    println!("{test}: {calls} calls in {:?}, each sum compared", start.elapsed());
    Ok(())
}
