//! `fewsync spd sensitivity`.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::bail;
use clap::ValueEnum;
use serde_json::json;

use super::several_ranks;
use super::text::TextArgs;
use crate::bench::machine::Machine;
use crate::bench::plot::{Content, Figure, Panel, Point, Scale, Series};
use crate::cli::generate::cancel_on_ctrl_c;
use crate::cli::layout::ModelArgs;
use crate::cli::output;
use crate::cli::results::check_file;
use crate::cli::session::{Session, progress_bar};
use crate::cli::world::World;
use crate::spd::{Meter, Metric, Ranking, Sensitivity, SpdSpec, state_bytes, sweep};

#[derive(clap::Args)]
#[command(after_help = "\
single: the block alone drops. cumulative: it and all behind it drop, the last block first; a block's share is the \
change (Section 4.2.1 of the SPD paper). Both are measured from the exact input of the block. Chunks are cut as by \
`fewsync eval`. With --out the file grows block by block, and the same command goes on where it ended.

Example:
  fewsync spd sensitivity --tp 3 --text some.txt --out sensitivity.json --plot sensitivity.svg
  fewsync spd plan --tp 3 --sensitivity sensitivity.json --count 15 --out plan.json")]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    text: TextArgs,
    /// What to measure
    #[arg(long, value_enum, default_value_t = Which::Both)]
    ranking: Which,
    /// The file to write, or to go on with
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Also plot the perplexities
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy)]
enum Which {
    Single,
    Cumulative,
    Both,
}

impl Which {
    fn rankings(self) -> &'static [Ranking] {
        match self {
            Self::Single => &[Ranking::Single],
            Self::Cumulative => &[Ranking::Cumulative],
            Self::Both => &[Ranking::Single, Ranking::Cumulative],
        }
    }
}

pub(super) fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    for path in [&args.out, &args.plot].into_iter().flatten() {
        check_file(path)?;
    }
    several_ranks(&args.model.layout)?;
    let mut session = Session::open(&args.model.on_reference(), &SpdSpec::None, &World::Threads)?;
    let (tp, n_layers) = (session.shape.world(), session.model.config.n_layers);
    let model = session.model.source.fingerprint()?;
    // Before the text: a file that is for something else is refused at once.
    let resumed = match &args.out {
        Some(path) if path.exists() => Some(Sensitivity::read(path, &model, tp, n_layers)?),
        _ => None,
    };
    let text = args.text.calibration(&session.model, &mut *session.runner)?;
    let mut sensitivity = match (resumed, &args.out) {
        (Some(resumed), Some(path)) => {
            resumed.check_text(&text.id(), path)?;
            resumed
        }
        _ => Sensitivity::new(model, tp, n_layers, text.id()),
    };
    let rankings = args.ranking.rankings();
    if !sensitivity.is_complete(rankings) {
        measure(args, &mut session, &text, rankings, &mut sensitivity)?;
    }
    if let Some(path) = &args.plot {
        figure(&session, &sensitivity)?.write(path)?;
    }
    if json {
        return output::json(&json!({ "model_name": session.model.name, "sensitivity": sensitivity }));
    }
    output::write(&table(&sensitivity)?)
}

fn measure(
    args: &Args,
    session: &mut Session,
    text: &crate::spd::Calibration,
    rankings: &[Ranking],
    sensitivity: &mut Sensitivity,
) -> anyhow::Result<()> {
    let n_layers = session.model.config.n_layers;
    let mib = state_bytes(&session.model.config, text.n_tokens()).div_ceil(1 << 20);
    output::note(&format!("{} tokens; their hidden states take {mib} MiB of memory", text.n_tokens()));
    let cancel = cancel_on_ctrl_c()?;
    // What is left of a block's sweep shrinks from block to block; its head, about half a model, does not.
    let work = |layer: usize| (n_layers - layer) + n_layers / 2;
    let bar = progress_bar((0..n_layers).map(work).sum::<usize>() as u64, "measuring", "{prefix},");
    let mut meter = Meter::new(&mut *session.runner, text.chunks())?;
    let unmeasured = |s: &Sensitivity| {
        let missing = |layer: &usize| rankings.iter().any(|&r| s.blocks[*layer].get(r).is_none());
        (0..n_layers).filter(missing).collect::<Vec<_>>()
    };
    let done =
        (0..n_layers).map(work).sum::<usize>() - unmeasured(sensitivity).into_iter().map(work).sum::<usize>();
    bar.set_position(done as u64);
    bar.reset_eta();
    sweep(&mut meter, rankings, sensitivity, |so_far, layer| {
        bar.set_prefix(format!("block {layer} of {n_layers}"));
        bar.inc(work(layer) as u64);
        args.out.as_ref().map_or(Ok(()), |path| so_far.write(path))?;
        Ok(!cancel.load(Ordering::Relaxed))
    })?;
    bar.finish_and_clear();
    if !sensitivity.is_complete(rankings) {
        let left = unmeasured(sensitivity).len();
        match &args.out {
            Some(path) => {
                bail!("interrupted with {left} blocks left: the same command goes on with {}", path.display())
            }
            None => bail!("interrupted with {left} blocks left: give --out to be able to go on"),
        }
    }
    Ok(())
}

/// One line a block: perplexity and what the block adds.
fn table(sensitivity: &Sensitivity) -> anyhow::Result<String> {
    let base = sensitivity.synchronised()?;
    let measured =
        [Ranking::Single, Ranking::Cumulative].into_iter().filter(|&r| sensitivity.is_complete(&[r]));
    let measured: Vec<Ranking> = measured.collect();
    let mut text = format!("synchronised perplexity {:.4}, {} ranks\nblock", base.perplexity, sensitivity.tp);
    let mut columns = Vec::new();
    for &ranking in &measured {
        write!(text, "  {:>16}    rise       kl", format!("{} drop", ranking.name()))?;
        columns.push((ranking, sensitivity.rises(ranking, Metric::Perplexity)?));
    }
    for (layer, block) in sensitivity.blocks.iter().enumerate() {
        write!(text, "\n{layer:5}")?;
        for (ranking, rises) in &columns {
            if let Some(score) = block.get(*ranking) {
                let percent = rises[layer] / base.perplexity * 100.0;
                write!(text, "  {:16.4} {percent:6.2}% {:8.5}", score.perplexity, score.kl)?;
            }
        }
    }
    text.push('\n');
    Ok(text)
}

fn figure(session: &Session, sensitivity: &Sensitivity) -> anyhow::Result<Figure> {
    let base = sensitivity.synchronised()?.perplexity;
    let n_layers = sensitivity.blocks.len();
    let point = |x: usize, y: f64| Point { x: x as f64, y, range: None };
    let mut series = Vec::new();
    for (color, (ranking, name)) in
        [(Ranking::Single, "this block drops"), (Ranking::Cumulative, "this block and all behind it drop")]
            .into_iter()
            .enumerate()
    {
        let scored = sensitivity.blocks.iter().enumerate();
        let points: Vec<Point> =
            scored.filter_map(|(i, block)| Some(point(i, block.get(ranking)?.perplexity))).collect();
        if !points.is_empty() {
            series.push(Series { name: name.into(), color, dashed: false, points });
        }
    }
    let points = vec![point(0, base), point(n_layers - 1, base)];
    series.push(Series { name: "synchronised".into(), color: 2, dashed: true, points });
    let panel = Panel {
        title: String::new(),
        x_label: "block".into(),
        y_label: "perplexity".into(),
        content: Content::Lines { x: Scale::Linear, y: Scale::Log10, series },
    };
    Ok(Figure {
        title: format!("Sync-Point Drop by block: {}, {} ranks", session.model.name, sensitivity.tp),
        caption: Machine::of(&[]).line(),
        panels: vec![panel],
    })
}
