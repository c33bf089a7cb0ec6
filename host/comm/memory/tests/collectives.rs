//! Results against plain arithmetic.

use super::*;
use crate::comm::Epilogue;

/// The sum in the order and with the roundings that the schedule promises.
fn promised<T: Element>(shape: Shape, contributions: &[Vec<f32>]) -> Vec<f32> {
    let round = |x: f32| T::from_f32(x).to_f32();
    let node = |n: usize, i: usize| {
        let ranks = &contributions[n * shape.gpus_per_node..(n + 1) * shape.gpus_per_node];
        round(ranks.iter().map(|c| round(c[i])).reduce(|a, b| a + b).unwrap())
    };
    let power = 1 << shape.nodes.ilog2();
    (0..contributions[0].len())
        .map(|i| {
            let mut sums: Vec<f32> = (0..power).map(|n| node(n, i)).collect();
            for n in power..shape.nodes {
                sums[n - power] = round(sums[n - power] + node(n, i));
            }
            while sums.len() > 1 {
                sums = sums.chunks(2).map(|pair| round(pair[0] + pair[1])).collect();
            }
            sums[0]
        })
        .collect()
}

fn sums_are_as_promised<T: Element>(granule: usize, tolerance: f64) {
    for text in SHAPES {
        let shape: Shape = text.parse().unwrap();
        for (round, numel) in [0, 1, 2, 17, 576, 1009].into_iter().enumerate() {
            let contributions: Vec<_> = (0..shape.world()).map(|r| random([r, round, 1], numel)).collect();
            let results = on_ranks(text, Options { granule, ..Options::default() }, |comm| {
                let mut buf = comm.register(numel * T::DTYPE.size_bytes()).unwrap();
                fill::<T>(&mut buf, &contributions[comm.topology().rank]);
                all_reduce(&comm, &mut buf, numel, T::DTYPE).unwrap();
                read::<T>(&buf, numel)
            });
            let expected = promised::<T>(shape, &contributions);
            for result in &results {
                assert_eq!(result, &expected, "{text}, {numel} elements");
            }
            for (i, &got) in expected.iter().enumerate() {
                let exact: f64 = contributions.iter().map(|c| f64::from(c[i])).sum();
                assert!((f64::from(got) - exact).abs() <= tolerance, "{got} for {exact}");
            }
        }
    }
}

#[test]
fn fp32_sums() {
    sums_are_as_promised::<f32>(1, 2e-6);
    sums_are_as_promised::<f32>(16, 2e-6);
}

#[test]
fn half_precision_sums() {
    sums_are_as_promised::<f16>(8, 2e-2);
    sums_are_as_promised::<bf16>(8, 0.15);
}

#[test]
fn gathers_have_everybodys_piece() {
    for text in SHAPES {
        let sizes = [3, 0, 64, 1, 7, 0, 5, 2, 11];
        on_ranks(text, Options::default(), |comm| {
            let Topology { rank, .. } = *comm.topology();
            let mut offsets = vec![0];
            for size in &sizes[..comm.topology().world()] {
                offsets.push(offsets[offsets.len() - 1] + size);
            }
            let numel = offsets[offsets.len() - 1];
            let mut buf = comm.register(4 * numel).unwrap();
            for round in 0..50 {
                let whole = random([round, 0, 2], numel);
                let own = offsets[rank]..offsets[rank + 1];
                buf.as_mut_slice::<f32>().fill(f32::NAN);
                buf.as_mut_slice()[own.clone()].copy_from_slice(&whole[own]);
                let op = AllGather { buf: &mut buf, offsets: &offsets, dtype: DType::F32 };
                comm.enqueue_gather(&(), op).unwrap();
                assert_eq!(buf.as_slice::<f32>(), whole, "{text}");
            }
        });
    }
}

#[test]
fn addend_and_epilogue_match_a_plain_computation() {
    const HIDDEN: usize = 24;
    const EPS: f32 = 1e-5;
    let numel = 3 * HIDDEN;
    for text in SHAPES {
        let shape: Shape = text.parse().unwrap();
        let (before, gain) = (random([0, 7, 7], numel), random([1, 7, 7], HIDDEN));
        let parts: Vec<_> =
            (0..shape.world()).map(|r| (random([r, 0, 3], numel), random([r, 1, 3], numel))).collect();
        let results = on_ranks(text, Options::default(), |comm| {
            let (z, y) = &parts[comm.topology().rank];
            let mut buf = comm.register(4 * numel).unwrap();
            fill::<f32>(&mut buf, z);
            let (mut residual, mut out) = (before.clone(), vec![f32::NAN; numel]);
            let epilogue = Epilogue::ResidualRmsNorm {
                residual: &mut residual[..],
                gain: &gain[..],
                eps: EPS,
                out: &mut out[..],
            };
            let op = AllReduce { buf: &mut buf, numel, dtype: DType::F32, addend: Some(&y[..]), epilogue };
            comm.enqueue(&(), op).unwrap();
            (residual, out)
        });
        let residual: Vec<f64> = (0..numel)
            .map(|i| {
                f64::from(before[i])
                    + parts.iter().map(|(z, y)| f64::from(z[i]) + f64::from(y[i])).sum::<f64>()
            })
            .collect();
        for (result, out) in &results {
            assert_eq!((result, out), (&results[0].0, &results[0].1), "{text}: ranks differ");
            for (row, values) in residual.chunks(HIDDEN).enumerate() {
                let mean = values.iter().map(|x| x * x).sum::<f64>() / HIDDEN as f64;
                for (i, x) in values.iter().enumerate() {
                    let norm = x / (mean + f64::from(EPS)).sqrt() * f64::from(gain[i]);
                    assert!((f64::from(result[row * HIDDEN + i]) - x).abs() < 1e-5);
                    assert!((f64::from(out[row * HIDDEN + i]) - norm).abs() < 1e-5);
                }
            }
        }
    }
}

#[test]
fn what_others_receive_of_an_addend_is_what_the_own_rank_sums() {
    // 1 + 2⁻⁹ is 1 in bf16: an addend kept in fp32 on the own rank alone would show in the sum.
    for result in on_ranks("1x2", Options::default(), |comm| {
        let mut buf = comm.register(2).unwrap();
        fill::<bf16>(&mut buf, &[1.0]);
        let addend = Some(&[1.0f32 / 512.0][..]);
        let op = AllReduce { buf: &mut buf, numel: 1, dtype: DType::Bf16, addend, epilogue: Epilogue::None };
        comm.enqueue(&(), op).unwrap();
        read::<bf16>(&buf, 1)
    }) {
        assert_eq!(result, [2.0]);
    }
}

#[test]
fn only_groups_of_two_or_more_count() {
    for (text, times) in [("1x1", 0), ("1x2", 1)] {
        on_ranks(text, Options::default(), |comm| {
            let mut buf = comm.register(16).unwrap();
            assert_eq!(buf.as_slice::<f32>(), [0.0; 4]);
            all_reduce(&comm, &mut buf, 4, DType::F32).unwrap();
            let op = Stage { phase: Phase::Reduce, buf: &mut buf, numel: 4, dtype: DType::F32 };
            comm.enqueue_stage(&(), op).unwrap();
            let offsets: Vec<usize> = (0..=comm.topology().world()).collect();
            let op = AllGather { buf: &mut buf, offsets: &offsets, dtype: DType::F32 };
            comm.enqueue_gather(&(), op).unwrap();
            assert_eq!(comm.counts(), Counts { all_reduces: times, all_gathers: times, stages: times });
        });
    }
}

#[test]
fn split_groups_are_groups() {
    on_ranks("2x4", Options::default(), |world| {
        let rank = world.topology().rank;
        let sum = |comm: &MemoryComm| {
            let mut buf = comm.register(4).unwrap();
            fill::<f32>(&mut buf, &[(1 << rank) as f32]);
            all_reduce(comm, &mut buf, 1, DType::F32).unwrap();
            buf.as_slice::<f32>()[0] as usize
        };
        // Tensor parallel in pairs of neighbours, data parallel across.
        let tp = world.split(rank / 2, rank).unwrap();
        let dp = world.split(rank % 2, rank).unwrap();
        assert_eq!(tp.topology().shape().to_string(), "1x2");
        assert_eq!(dp.topology().shape().to_string(), "2x2");
        assert_eq!(sum(&tp), 0b11 << (rank / 2 * 2));
        assert_eq!(sum(&dp), 0b0101_0101 << (rank % 2));
        // Keys turn the order around; a group splits again.
        let turned = tp.split(0, 9 - rank).unwrap();
        assert_eq!(turned.topology().rank, 1 - tp.topology().rank);
        let alone = turned.split(rank, 0).unwrap();
        assert_eq!((sum(&turned), sum(&alone)), (0b11 << (rank / 2 * 2), 1 << rank));
        assert_eq!((world.counts().all_reduces, tp.counts().all_reduces), (0, 1));
        assert_eq!(sum(&world), 0xff);
    });
}
