//! Fuzzing without nightly: mutates the corpora for a bounded time, in this process.
//!
//! `mutate [TARGET] [--seconds N] [--seed S] [--run R]` runs one target or all; with `--run`, one run only.
//! `mutate --seeds` writes the seeds to the corpora, where no file of their name is.

#![expect(
    clippy::print_stdout,
    reason = "it tells the person who runs it what it does"
)]

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use sitepair_fuzzing::mutate::{Rng, mutated};
use sitepair_fuzzing::{TARGETS, Target, corpus_root};

const SECONDS: u64 = 60;

struct Options {
    targets: Vec<Target>,
    seconds: u64,
    seed: u64,
    run: Option<u64>,
}

fn main() -> ExitCode {
    let result = match env::args().nth(1).as_deref() {
        Some("--seeds") => write_seeds().map(|()| true),
        _ => parse().and_then(|options| fuzz(&options)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            println!("mutate: {e}");
            ExitCode::from(2)
        }
    }
}

fn parse() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        targets: TARGETS.to_vec(),
        seconds: SECONDS,
        seed: 1,
        run: None,
    };
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64, Box<dyn Error>> {
            Ok(args.next().ok_or("a number is missing")?.parse()?)
        };
        match arg.as_str() {
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = number()?,
            "--run" => options.run = Some(number()?),
            name => {
                let known = TARGETS.map(|target| target.name).join(", ");
                let target = Target::named(name);
                options.targets =
                    vec![target.ok_or_else(|| format!("no target {name}: there are {known}"))?];
            }
        }
    }
    Ok(options)
}

fn write_seeds() -> Result<(), Box<dyn Error>> {
    for target in TARGETS {
        fs::create_dir_all(target.corpus())?;
        for (name, bytes) in (target.seeds)() {
            let path = target.corpus().join(name);
            if !path.exists() {
                fs::write(path, bytes)?;
            }
        }
    }
    Ok(())
}

fn fuzz(options: &Options) -> Result<bool, Box<dyn Error>> {
    let share = Duration::from_secs(options.seconds) / u32::try_from(options.targets.len())?;
    let mut good = true;
    for target in &options.targets {
        good &= fuzz_one(*target, options, share)?;
    }
    Ok(good)
}

/// Runs one target until its time is over or it has failed.
fn fuzz_one(target: Target, options: &Options, share: Duration) -> Result<bool, Box<dyn Error>> {
    let name = target.name;
    let seed = options.seed;
    let mut corpus: Vec<Vec<u8>> = (target.seeds)().into_iter().map(|(_, b)| b).collect();
    if let Ok(stored) = fs::read_dir(target.corpus()) {
        // By name: what a run is must not depend on the folder's order. Ids in the seeds are random, the stored are not.
        let mut paths: Vec<PathBuf> = stored
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        paths.sort();
        if !paths.is_empty() {
            corpus = paths.into_iter().map(fs::read).collect::<Result<_, _>>()?;
        }
    }
    println!("{name}: seed {seed}, {} inputs to begin with", corpus.len());
    let begun = Instant::now();
    let runs = options.run.map_or(0..u64::MAX, |run| run..run + 1);
    let mut done = 0_u64;
    for run in runs {
        if begun.elapsed() >= share && options.run.is_none() {
            break;
        }
        let input = mutated(&corpus, &mut Rng::new(seed, run));
        if catch_unwind(AssertUnwindSafe(|| target.run(&input))).is_err() {
            let folder = corpus_root().join("../artifacts").join(name);
            fs::create_dir_all(&folder)?;
            let path = folder.join(format!("seed{seed}-run{run}"));
            fs::write(&path, &input)?;
            println!("{name}: failed; again with: mutate {name} --seed {seed} --run {run}");
            println!("{name}: the input is {}", path.display());
            return Ok(false);
        }
        done += 1;
    }
    println!("{name}: {done} runs, nothing found");
    Ok(true)
}
