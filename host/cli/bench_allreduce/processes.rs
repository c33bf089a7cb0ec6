//! `fewsync bench allreduce` with a process for each rank: this crate's communicator over NVSHMEM, NVSHMEM's own sum,
//! and NCCL in processes of its own beside them.

use std::sync::Arc;

use super::args::Args;
use super::{HEADING, line_of, measure_nccl, method};
use crate::bench::allreduce::Measurement;
use crate::bench::allreduce::contest::Process;
use crate::bench::allreduce::figure::figure;
use crate::bench::allreduce::record::compare;
use crate::bench::machine::Machine;
use crate::bench::report::Report;
use crate::cli::output;
use crate::cli::session::local_gpu;
use crate::comm::bootstrap::{Bootstrap, Mesh, shape_of_hosts};
use crate::comm::gpu::GroupOptions;

pub(super) fn run(args: &Args, json: bool, mesh: &Arc<Mesh>) -> anyhow::Result<()> {
    let shape = args.shape_or(shape_of_hosts(mesh.hosts()))?;
    let sweep = args.sweep(shape);
    let mut notes = vec![method(), format!("{} processes, one GPU each", mesh.world())];
    let mut lines = Vec::new();
    if mesh.rank() == 0 {
        args.files.check::<Measurement>("allreduce")?;
        measure_nccl(args, &sweep, &mut lines, &mut notes);
    }
    // NCCL has the GPUs until it is done, however long that takes.
    let all: Vec<_> = (0..mesh.world()).collect();
    mesh.meet(&all, "the begin of the measurement", &[], None)?;

    let device = local_gpu(&**mesh)?;
    let options = GroupOptions {
        tuning: args.forced.tuning(),
        ..args.sync().group_of_processes(&**mesh, &device, shape)?
    };
    let process = Process::start(&device, &options, Arc::<Mesh>::clone(mesh))?;
    let mut measured = process.run_ours(&sweep, &options, &args.variant(&options), |_| {})?;
    match process.run_nvshmem(&sweep) {
        Ok(theirs) => measured.extend(theirs),
        Err(reason) => notes.push(format!("NVSHMEM's own sum: not measured, since {reason}")),
    }
    measured.extend(lines);
    compare(&mut measured);
    let machine = Machine::of(&[device]);
    if !json {
        let table: String = measured.iter().map(line_of).collect();
        output::write(&format!("{}\n{HEADING}{table}", machine.line()))?;
    }
    let report = Report::new("allreduce", machine, notes, measured);
    args.files.write(&report, || figure(&report))?;
    if json {
        return output::json(&report);
    }
    output::write(&format!("{}\n", report.notes.join("\n")))
}
