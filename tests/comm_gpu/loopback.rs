//! Many ranks of a GPU, or of two, that share its launches.

use fewsync::comm::gpu::{Algorithm, GroupOptions, Loopback, LoopbackBuffer, LoopbackSlices, Tuning};
use fewsync::comm::{DType, Phase, Shape};
use fewsync::driver::{DevicePtr, Stream};
use fewsync::kernels::Addr;
use fewsync::kernels::nvrar::NormAfter;
use fewsync::selftest::reference::sum_of_ranks;
use half::bf16;

use crate::gpu::gpu;
use crate::{Result, assert_bits, contribution, libraries, options, soak};

/// Sums, phases and gathers of many sizes on one buffer, back to back without waiting, over the wrap.
#[test]
fn kinds_alternate_without_waiting() -> Result {
    let Some((_guard, _)) = gpu("kinds") else { return Ok(()) };
    let libraries = libraries();
    for (nodes, gpus_per_node) in [(2, 2), (4, 2), (3, 3), (2, 4), (1, 8), (1, 2)] {
        let shape = Shape { nodes, gpus_per_node };
        let gpus = if shape.world().is_multiple_of(libraries.len()) { libraries } else { &libraries[..1] };
        let ranks = Loopback::new(gpus, shape, options())?;
        let streams =
            gpus.iter().map(|library| Ok(library.device().stream()?)).collect::<Result<Vec<_>>>()?;
        const MOST: usize = 40_000;
        let mut buf = ranks.register(MOST * 4)?;
        let stream_of = |rank: usize| &streams[rank / ranks.ranks_per_gpu()];
        let mut model = Vec::new();
        for call in 0..soak::calls(240).next_multiple_of(PER_TENSOR) {
            // Sums of sums outgrow f32: tensors of their own now and then.
            if call % PER_TENSOR == 0 {
                expect(shape, &ranks, &buf, &model, &stream_of)?;
                model = (0..shape.world()).map(|rank| contribution::<f32>(rank, MOST, call)).collect();
                for (rank, elements) in model.iter().enumerate() {
                    buf.write(rank, bytemuck::cast_slice(elements), stream_of(rank))?;
                }
            }
            let numel = [MOST, 1, 9000, 64, 257][call % 5];
            let offsets: Vec<usize> = (0..=shape.world()).map(|r| numel * r / shape.world()).collect();
            let kind = call % 4;
            for (gpu, stream) in streams.iter().enumerate() {
                let what = (numel, DType::F32);
                match kind {
                    // SAFETY: no slices.
                    0 => unsafe { ranks.all_reduce(gpu, stream, &mut buf, what, LoopbackSlices::NONE)? },
                    1 => {
                        for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
                            ranks.phase(gpu, stream, &mut buf, phase, what)?;
                        }
                    }
                    _ => ranks.all_gather(gpu, stream, &mut buf, &offsets, DType::F32)?,
                }
            }
            if kind < 2 {
                let head: Vec<Vec<f32>> = model.iter().map(|rank| rank[..numel].to_vec()).collect();
                let sums = sum_of_ranks(shape, &head);
                model.iter_mut().for_each(|rank| rank[..numel].copy_from_slice(&sums));
            } else {
                let pieces: Vec<f32> = (0..shape.world())
                    .flat_map(|rank| model[rank][offsets[rank]..offsets[rank + 1]].to_vec())
                    .collect();
                model.iter_mut().for_each(|rank| rank[..numel].copy_from_slice(&pieces));
            }
        }
        expect(shape, &ranks, &buf, &model, &stream_of)?;
    }
    Ok(())
}

/// Calls on the same tensors, one after the other.
const PER_TENSOR: usize = 24;

/// Waits, and compares each rank's elements with the model's.
fn expect<'a>(
    shape: Shape,
    ranks: &Loopback,
    buf: &LoopbackBuffer,
    model: &[Vec<f32>],
    stream_of: &impl Fn(usize) -> &'a Stream,
) -> Result {
    for (rank, expected) in model.iter().enumerate() {
        let mut found = vec![0.0_f32; expected.len()];
        stream_of(rank).synchronize()?;
        ranks.check()?;
        buf.read(rank, bytemuck::cast_slice_mut(&mut found), stream_of(rank))?;
        assert_bits(&found, expected, &format!("{shape}, rank {rank}"));
    }
    Ok(())
}

/// Rows of several widths and numbers, normalised in the launch that sums them in two shots, back to back on one
/// buffer.
#[test]
fn rows_are_normalised_where_they_are_summed() -> Result {
    let Some((_guard, _)) = gpu("rows") else { return Ok(()) };
    let library = &libraries()[..1];
    for (nodes, gpus_per_node) in [(2, 2), (1, 4), (3, 2), (1, 8), (4, 1)] {
        let shape = Shape { nodes, gpus_per_node };
        let tuning = Some(Tuning { algorithm: Some(Algorithm::TwoShot), ..Tuning::default() });
        let ranks = Loopback::new(library, shape, GroupOptions { tuning, ..options() })?;
        rows_back_to_back(&ranks, shape, &library[0].device().stream()?)?;
    }
    Ok(())
}

fn rows_back_to_back(ranks: &Loopback, shape: Shape, stream: &Stream) -> Result {
    const ROWS: [(usize, usize); 6] = [(4096, 1), (16_384, 4), (64, 7), (8192, 16), (4096, 128), (8, 3)];
    const RESIDUAL: usize = 99;
    let (device, world) = (stream.device(), shape.world());
    let most = ROWS.iter().map(|(hidden, rows)| hidden * rows).max().unwrap_or_default();
    let mut buf = ranks.register(most * 2)?;
    let mut enqueued = Vec::new();
    for call in 0..2 * ROWS.len() {
        let (hidden, rows) = ROWS[call % ROWS.len()];
        let numel = hidden * rows;
        let own: Vec<bf16> = (0..world).flat_map(|rank| contribution(rank, numel, call)).collect();
        let own = device.upload(&own, stream)?;
        let residual: Vec<bf16> = (0..world).flat_map(|_| contribution(RESIDUAL, numel, call)).collect();
        let residual = device.upload(&residual, stream)?;
        let out = device.upload(&vec![bf16::NAN; world * numel], stream)?;
        let gain = device.upload(&vec![bf16::ONE; hidden], stream)?;
        for rank in 0..world {
            let to = DevicePtr(buf.addr::<u8>(rank).raw());
            // SAFETY: the buffer is at least as long, and both live until the stream has been waited for.
            unsafe { device.gpu().copy_d2d(stream.id(), to, own.ptr_at(rank * numel), numel * 2)? };
        }
        let (residual_at, out_at, gain_at) = (residual.addr(), out.addr(), gain.addr());
        let norm =
            NormAfter { residual: residual_at, gain: gain_at, out: out_at, hidden: hidden as u32, eps: 1e-5 };
        let slices = LoopbackSlices { addend: Addr::NULL, norm: Some(norm), stride: numel };
        // SAFETY: the slices have a tensor for each rank and live until the stream has been waited for.
        unsafe { ranks.all_reduce(0, stream, &mut buf, (numel, DType::Bf16), slices)? };
        enqueued.push((hidden, numel, own, residual, out, gain));
    }
    stream.synchronize()?;
    ranks.check()?;
    for (call, (hidden, numel, _, residual, out, _)) in enqueued.iter().enumerate() {
        let what = format!("{shape}, call {call}, {} rows of {hidden}", numel / hidden);
        let of_rank: Vec<Vec<bf16>> = (0..world).map(|rank| contribution(rank, *numel, call)).collect();
        let before = contribution::<bf16>(RESIDUAL, *numel, call);
        let sums = sum_of_ranks(shape, &of_rank);
        let after = before.iter().zip(&sums).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32()));
        let after: Vec<bf16> = after.collect();
        let (residual, out) = (residual.download(stream)?, out.download(stream)?);
        for (residual, of_rank) in residual.chunks(*numel).zip(out.chunks(*numel)) {
            assert_bits(residual, &after, &format!("the residual of {what}"));
            assert_bits(of_rank, &out[..*numel], &format!("the norm of {what}, beside rank 0's"));
        }
        for (row, out) in after.chunks(*hidden).zip(out.chunks(*hidden)) {
            let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
            let scale = (squares / *hidden as f64 + 1e-5).sqrt().recip();
            for (x, found) in row.iter().zip(out) {
                let expected = f64::from(*x) * scale;
                let is_near = (f64::from(*found) - expected).abs() <= expected.abs() / 128.0;
                assert!(is_near, "the norm of {what}: {found} instead of {expected}");
            }
        }
    }
    Ok(())
}
