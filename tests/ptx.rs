//! The embedded PTX, as text: the instructions that make a kernel what it claims to be, and the
//! parameter blocks that the host must match. Needs neither a GPU nor a toolchain; with FEWSYNC_BUILD_DEVICE=1
//! it is a fresh build of device/ that is judged, by whatever toolchain is there.

use std::collections::BTreeMap;
use std::mem::size_of;

use fewsync::kernels::{NVSHMEM_PTX, PTX, Ptx};

#[allow(dead_code, unreachable_pub, reason = "another crate's file; only the sizes are read")]
#[path = "../device/src/params.rs"]
mod params;

/// The embedded file for an architecture.
fn file(arch: &str) -> &'static Ptx {
    PTX.iter().find(|ptx| ptx.arch == arch).unwrap_or_else(|| panic!("no PTX for {arch}"))
}

/// Text of every entry point, by name.
fn kernels(ptx: &str) -> BTreeMap<&str, &str> {
    let mut entries = ptx.split(".visible .entry ");
    entries.next();
    entries.map(|text| (text.split('(').next().unwrap_or_default(), text)).collect()
}

fn each_kernel(mut check: impl FnMut(&str, &str, &str)) {
    for ptx in &PTX {
        for (name, text) in kernels(ptx.text) {
            check(ptx.arch, name, text);
        }
    }
}

#[test]
fn the_file_for_hopper_has_products_over_wgmma_besides() {
    let names = |arch| kernels(file(arch).text).into_keys().collect::<Vec<_>>();
    assert!(names("sm_80").len() >= 30, "{:?}", names("sm_80"));
    let (more, same): (Vec<_>, Vec<_>) =
        names("sm_90a").into_iter().partition(|name| name.starts_with("wgmma_"));
    assert_eq!(names("sm_80"), same);
    assert_eq!(more.len(), 20);
}

#[test]
fn versions_are_those_that_the_oldest_drivers_meant_take() {
    assert!(file("sm_80").text.contains("\n.version 7.4\n.target sm_80\n"));
    assert!(file("sm_90a").text.contains("\n.version 8.4\n.target sm_90a\n"));
}

#[test]
fn no_kernel_uses_local_memory_or_calls_a_function() {
    for ptx in &PTX {
        for word in [".local", ".func", "call."] {
            assert!(!ptx.text.contains(word), "{}: {word}", ptx.arch);
        }
    }
}

/// NVSHMEM's functions are open, and nothing else is: what it has is linked on the user's machine.
#[test]
fn kernels_that_put_leave_two_functions_open() {
    for ptx in &NVSHMEM_PTX {
        let found: Vec<_> = kernels(ptx.text).into_keys().collect();
        assert_eq!(found, ["allgather_put", "allreduce_bf16_put", "allreduce_f16_put", "allreduce_f32_put"]);
        assert!(ptx.text.contains(&format!("\n.target {}\n", ptx.arch)), "{}", ptx.arch);
        let open: Vec<_> = ptx.text.lines().filter_map(|line| line.strip_prefix(".extern .func ")).collect();
        assert_eq!(open, ["nvshmem_putmem_nbi", "nvshmemx_putmem_nbi_warp"], "{}", ptx.arch);
        for word in [".local", ".visible .func"] {
            assert!(!ptx.text.contains(word), "{}: {word}", ptx.arch);
        }
        for (name, text) in kernels(ptx.text) {
            // Greetings by the clerk, messages by the couriers; nobody else calls anything.
            assert!(
                text.contains("nvshmem_putmem_nbi,") && text.contains("nvshmemx_putmem_nbi_warp,"),
                "{name}"
            );
            assert!(text.contains("ld.relaxed.sys.global.v4.b32"), "{name} does not poll words");
            // One for workers and one for couriers: a copy would stand behind a branch that parts a warp.
            assert_eq!(text.matches("bar.sync 2").count(), 2, "{} {name}", ptx.arch);
        }
    }
}

/// A copy of a barrier, behind a branch that parts a warp, would be waited at by a part of it.
#[test]
fn rows_are_added_up_in_one_place() {
    let norms = kernels(file("sm_90a").text)
        .into_iter()
        .filter(|(name, _)| name.starts_with("allreduce_") && name.ends_with("_norm"));
    let mut found = 0;
    for (name, text) in norms {
        let once = [
            "bar.sync 2",
            "barrier.cluster.arrive.relaxed.aligned",
            "barrier.cluster.wait.acquire;",
            "fence.mbarrier_init.release.cluster",
            "st.async.weak",
            "mbarrier.arrive.expect_tx",
            "mbarrier.try_wait.parity.acquire.cluster",
        ];
        for instruction in once {
            assert_eq!(text.matches(instruction).count(), 1, "{name}: {instruction}");
        }
        assert_eq!(text.matches("shfl.sync").count(), 5, "{name}");
        found += 1;
    }
    assert_eq!(found, 4);
}

#[test]
fn matrix_kernels_use_tensor_cores_fed_by_asynchronous_copies() {
    each_kernel(|arch, name, text| {
        let tensor_cores = text.contains("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32");
        let copies = text.contains("cp.async.cg.shared.global") && text.contains("ldmatrix.sync.aligned");
        let by_warpgroups = arch == "sm_90a" && name.starts_with("attn_prefill_");
        if name.starts_with("gemm_") || name.starts_with("attn_") && !by_warpgroups {
            assert!(tensor_cores && copies, "{arch} {name}");
        }
        if name.starts_with("gemv_bf16_m8") {
            assert!(tensor_cores, "{arch} {name}");
        }
    });
}

#[test]
fn products_on_hopper_are_of_warpgroups_and_read_shared_memory_behind_a_proxy_fence() {
    for (name, text) in
        kernels(file("sm_90a").text).into_iter().filter(|(name, _)| name.starts_with("wgmma_"))
    {
        // wgmma_bf16_{tokens}x{weight rows}: tokens are the columns where weights stream, else weight rows are.
        let (tokens, rows) = name.split('_').nth(2).and_then(|tile| tile.split_once('x')).unwrap();
        let streams = tokens.parse::<u32>().unwrap() < 128;
        let product = format!("m64n{}k16.f32.bf16.bf16", if streams { tokens } else { rows });
        assert_eq!(text.matches(&format!("wgmma.mma_async.sync.aligned.{product}")).count(), 4, "{name}");
        assert!(!text.contains("mma.sync") && text.contains("cp.async.cg.shared.global"), "{name}");
        let at =
            |instruction: &str| text.find(instruction).unwrap_or_else(|| panic!("{name}: no {instruction}"));
        let order = ["fence.proxy.async.shared::cta", "wgmma.fence", "wgmma.mma_async", "wgmma.commit_group"];
        assert!(order.map(at).is_sorted(), "{name}");
        // Partial sums of a cluster.
        assert!(
            text.contains("mapa.shared::cluster") && text.contains("barrier.cluster.wait.acquire"),
            "{name}"
        );
        // Racecheck does not follow it.
        assert!(!text.contains("cp.async.mbarrier.arrive"), "{name}");
    }
}

/// What the launch's tensor maps are for: boxes of both matrices by one thread, and no fence behind them.
#[test]
fn products_for_prompts_take_boxes_by_tensor_copies() {
    let products = kernels(file("sm_90a").text).into_iter().filter(|(name, _)| name.starts_with("wgmma_"));
    let mut found = 0;
    for (name, text) in products {
        let of_prompts = name.starts_with("wgmma_bf16_128x");
        let maps = text.contains(&format!(".param .align 64 .b8 {name}_param_0["));
        assert_eq!(maps, of_prompts, "{name}");
        if !of_prompts {
            assert!(!text.contains("cp.async.bulk"), "{name}");
            continue;
        }
        for (dimensions, copies) in [("5d", 2), ("2d", 1)] {
            let copy = format!(
                "cp.async.bulk.tensor.{dimensions}.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
            );
            assert_eq!(text.matches(&copy).count(), copies, "{name}: {copy}");
        }
        assert_eq!(text.matches("mbarrier.arrive.expect_tx").count(), 2, "{name}");
        // Behind the initialisation of the barriers, and behind what threads have copied, before they arrive.
        let behind = text.split("fence.proxy.async.shared::cta;").skip(2);
        let next = behind.filter_map(|text| text.split_once("mbarrier.")).map(|(_, next)| next);
        assert!(
            next.clone().count() >= 2 && next.into_iter().all(|next| next.starts_with("arrive.shared")),
            "{name}"
        );
        found += 1;
    }
    assert_eq!(found, 12);
}

#[test]
fn prompts_on_hopper_are_attended_to_by_warpgroups_whose_exponentials_overlap_with_products() {
    let kernels = kernels(file("sm_90a").text);
    for head_dim in [64, 128] {
        let name = format!("attn_prefill_bf16_d{head_dim}");
        let text = kernels[name.as_str()];
        // Queries by keys from shared memory; weights in registers by values that lie along N. Once ahead of the loop
        // over tiles or behind it, and once in it.
        let products = |columns: u32, right: &str| {
            let opcode = format!("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 ");
            text.lines().filter(|line| line.contains(&opcode) && line.contains(right)).count()
        };
        assert_eq!(products(128, "%add, 1, 1, 0, 0;"), 2 * head_dim as usize / 16, "{name}");
        assert_eq!(products(head_dim, "%add, 1, 1, 1;"), 2 * 128 / 16, "{name}");
        assert!(!text.contains("mma.sync") && !text.contains("ldmatrix"), "{name}");
        for once in ["setmaxnreg.dec.sync.aligned.u32 40;", "setmaxnreg.inc.sync.aligned.u32 232;"] {
            assert_eq!(text.matches(once).count(), 1, "{name}: {once}");
        }
        // Racecheck does not follow it.
        assert!(!text.contains("cp.async.mbarrier.arrive"), "{name}");
        // In the loop: both groups are issued, the first one is waited for, and exponentials come before the second
        // wait, with a branch between, beyond which the assembler moves no wait.
        let (_, behind) =
            text.split_once("wgmma.wait_group.sync.aligned 1;").expect("a wait for the first group");
        assert!(!behind.contains("wgmma.wait_group.sync.aligned 1;"), "{name}");
        let (between, _) =
            behind.split_once("wgmma.wait_group.sync.aligned 0;").expect("a wait for the second");
        assert_eq!(between.matches("ex2.approx").count(), 2 + 64, "{name}");
        assert!(
            between.rsplit("ex2.approx").next().is_some_and(|behind| behind.contains("$L__BB")),
            "{name}"
        );
        let exponentials = text.matches("ex2.approx").count();
        assert_eq!(exponentials, 2 * (2 + 64), "{name}");
    }
}

#[test]
fn streaming_kernels_load_weights_by_16_bytes_past_l1() {
    each_kernel(|arch, name, text| {
        if name.starts_with("gemv_") {
            let loads = text.matches("ld.global.nc.L1::no_allocate.v4.b32").count();
            assert!(loads >= 4, "{arch} {name}: {loads}");
        }
    });
}

#[test]
fn collectives_exchange_by_relaxed_system_accesses_alone() {
    each_kernel(|arch, name, text| {
        if !name.starts_with("allreduce") && !name.starts_with("allgather") {
            assert!(!text.contains(".sys"), "{arch} {name}");
            return;
        }
        // Greetings are cells in both formats; words come and go by four.
        for access in ["st.relaxed.sys.global.v2.b64", "ld.relaxed.sys.global.v2.b64"] {
            assert!(text.contains(access), "{arch} {name}: {access}");
        }
        let words =
            text.contains("st.relaxed.sys.global.v4.b32") && text.contains("ld.relaxed.sys.global.v4.b32");
        assert_eq!(words, name.contains("words"), "{arch} {name}");
        // One fence between passes; the failure record is released.
        assert!(text.matches("fence.acq_rel.sys").count() <= 1, "{arch} {name}");
        assert!(text.contains("st.release.sys.global.b32"), "{arch} {name}");
        for word in ["multimem", "ld.volatile", "st.volatile"] {
            assert!(!text.contains(word), "{arch} {name}: {word}");
        }
    });
}

#[test]
fn every_kernel_is_bounded_and_joins_dependent_launch_where_there_is_one() {
    each_kernel(|arch, name, text| {
        assert!(text.contains(".maxntid "), "{arch} {name}");
        let waits = text.contains("griddepcontrol.wait") && text.contains("griddepcontrol.launch_dependents");
        assert_eq!(waits, arch == "sm_90a", "{arch} {name}");
    });
}

#[test]
fn parameter_blocks_have_the_size_of_their_struct() {
    let size_of_params = |name: &str| match name {
        "add_bf16" => size_of::<params::Add>(),
        "embedding_bf16" => size_of::<params::Embedding>(),
        "rmsnorm_bf16" | "add_rmsnorm_bf16" => size_of::<params::RmsNorm>(),
        "argmax_f32" => size_of::<params::Argmax>(),
        "sample_f32" => size_of::<params::Sample>(),
        "advance_positions_u32" => size_of::<params::AdvancePositions>(),
        _ if name.starts_with("rope_kv_write") => size_of::<params::RopeKvWrite>(),
        _ if name.starts_with("attn_decode") => size_of::<params::AttnDecode>(),
        _ if name.starts_with("attn_prefill") => size_of::<params::AttnPrefill>(),
        _ if name.starts_with("allreduce") => size_of::<params::Collective>(),
        _ if name.starts_with("allgather") => size_of::<params::Gather>(),
        _ if name.starts_with("wgmma_bf16_128x") => size_of::<params::PrefillGemm>(),
        _ if name.starts_with("gem") || name.starts_with("wgmma") => size_of::<params::Gemm>(),
        _ => panic!("{name} has no parameter struct here"),
    };
    each_kernel(|arch, name, text| {
        let block = format!("{name}_param_0[{}]", size_of_params(name));
        assert!(text.contains(&block), "{arch}: no {block}");
    });
}
