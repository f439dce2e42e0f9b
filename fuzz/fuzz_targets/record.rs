//! Gives libFuzzer's inputs to target `record`; what it checks is in `tests/fuzzing`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    sitepair_fuzzing::Target::named("record").expect("it is in the list").run(input);
});
