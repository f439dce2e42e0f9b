//! An error and its causes as one line of text, the same wherever a person reads it.

use std::error::Error;

/// Deepest cause that is told; a chain that never ends must not hang its reader.
const CAUSES_MAX: usize = 16;

/// The error and what caused it, outermost first, joined with colons. A cause whose words were said already is left
/// out: many errors repeat their source.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    for _ in 0..CAUSES_MAX {
        let Some(cause) = next else { break };
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Failure {
        words: &'static str,
        source: Option<Box<Failure>>,
    }

    fn failure(words: &'static str, source: Option<Failure>) -> Failure {
        let source = source.map(Box::new);
        Failure { words, source }
    }

    #[test]
    fn causes_are_told_once() {
        let cause = failure("no such file", None);
        let middle = failure("open it: no such file", Some(cause));
        let outer = failure("protect the disk", Some(middle));
        assert_eq!(chain(&outer), "protect the disk: open it: no such file");
    }
}
