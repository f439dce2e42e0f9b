//! Replays what fuzzing has found, and a few mutations of it, on stable.
//!
//! One test, because memory is measured for the whole process.

use sitepair_fuzzing::mutate::{Rng, mutated};
use sitepair_fuzzing::{TARGETS, seeds};

/// Mutations of each target here; `cargo xtask fuzz` does more.
const RUNS: u64 = 60;
/// A corpus is small; more belongs into the fuzzer's own folder.
const CORPUS_FILES_MAX: usize = 64;

#[test]
fn stored_and_mutated_inputs_break_no_promise() {
    seeds::check_folding();
    for target in TARGETS {
        let folder = target.corpus();
        let files = std::fs::read_dir(&folder)
            .unwrap_or_else(|e| panic!("corpus {}: {e}", folder.display()));
        let mut paths: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{}: no stored inputs", target.name);
        assert!(paths.len() <= CORPUS_FILES_MAX, "{}: too many", target.name);
        let corpus: Vec<_> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
        for (path, input) in paths.iter().zip(&corpus) {
            println!("{}", path.display());
            target.run(input);
        }
        for run in 0..RUNS {
            println!("{} seed 0 run {run}", target.name);
            target.run(&mutated(&corpus, &mut Rng::new(0, run)));
        }
        // What the seeds of today are, must pass too.
        for (name, input) in (target.seeds)() {
            println!("{} seed {name}", target.name);
            target.run(&input);
        }
    }
}
