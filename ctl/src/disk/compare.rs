//! `sitepair disk compare`: whether two images hold the same, whatever their formats.

use clap::Args;
use indicatif::BinaryBytes;
use serde::Serialize;
use sitepair_disk::compare::{self, CompareError, Compared, Difference};
use sitepair_disk::parent::Parents;

use super::{FormatArg, PathBuf, failed, open, work};
use crate::cli::Output;
use crate::error::Failure;
use crate::view::SCHEMA;

#[derive(Debug, Args)]
#[command(after_help = "\
Exit codes: 0 the same; 1 different, or of another size with --strict; 2 wrong usage; \
3 not compared, with the reason")]
pub(crate) struct CompareArgs {
    /// An image; nobody may have it open for writing
    pub(crate) first: PathBuf,
    /// Another image
    pub(crate) second: PathBuf,
    /// Format of the first image; told from the content if it is not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) first_format: Option<FormatArg>,
    /// Format of the second image; told from the content if it is not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) second_format: Option<FormatArg>,
    /// Open the parents that differencing images name, if they are inside this folder
    #[arg(long, value_name = "DIR")]
    pub(crate) parents_inside: Option<PathBuf>,
    /// Images of different sizes are different, even if the rest of the longer one is zeros
    #[arg(long)]
    pub(crate) strict: bool,
}

/// What is printed with `-o json`.
#[derive(Debug, Serialize)]
struct View {
    schema: u32,
    first: String,
    second: String,
    same: bool,
    first_bytes: u64,
    second_bytes: u64,
    difference: Option<DifferenceView>,
}

/// Bytes are hexadecimal.
#[derive(Debug, Serialize)]
struct DifferenceView {
    offset: u64,
    first: String,
    second: String,
}

pub(super) async fn run(args: CompareArgs, output: Output) -> Result<(), Failure> {
    // That they differ is the only failure with that code.
    let compared = compare(&args, output)
        .await
        .map_err(Failure::into_unanswered)?;
    let view = View::new(&args, compared);
    let printed = crate::print(output, &view, View::sentence);
    printed.map_err(Failure::into_unanswered)?;
    if view.same {
        Ok(())
    } else {
        Err(Failure::Different)
    }
}

async fn compare(args: &CompareArgs, output: Output) -> Result<Compared, Failure> {
    let parents = || match &args.parents_inside {
        Some(folder) => Parents::Inside(folder.clone()),
        None => Parents::Refused,
    };
    let first = open(&args.first, args.first_format, parents())?;
    let second = open(&args.second, args.second_format, parents())?;
    let longer = first
        .geometry()
        .size_bytes
        .max(second.geometry().size_bytes);
    let done = work::run("compare", longer, output, move |progress| {
        compare::compare(&*first, &*second, progress)
    });
    done.await?.map_err(|error| match error {
        CompareError::First(error) => failed(&args.first, error),
        CompareError::Second(error) => failed(&args.second, error),
        CompareError::Stopped => Failure::Failed(anyhow::anyhow!("stopped before the end")),
    })
}

impl View {
    fn new(args: &CompareArgs, compared: Compared) -> Self {
        let sizes_do = !args.strict || compared.first_bytes == compared.second_bytes;
        Self {
            schema: SCHEMA,
            first: args.first.display().to_string(),
            second: args.second.display().to_string(),
            same: compared.difference.is_none() && sizes_do,
            first_bytes: compared.first_bytes,
            second_bytes: compared.second_bytes,
            difference: compared.difference.as_ref().map(DifferenceView::from),
        }
    }

    fn sentence(&self) -> String {
        let (first, second) = (&self.first, &self.second);
        if let Some(difference) = &self.difference {
            return format!(
                "{first} and {second} differ first at offset {}\n  {first}: {}\n  {second}: {}",
                difference.offset,
                shown(&difference.first),
                shown(&difference.second)
            );
        }
        let (longer, more) = if self.first_bytes > self.second_bytes {
            (first, self.first_bytes - self.second_bytes)
        } else {
            (second, self.second_bytes - self.first_bytes)
        };
        let tail = format!(
            "{longer} is longer by {more} bytes ({}), all of them zeros",
            BinaryBytes(more)
        );
        match (more, self.same) {
            (0, _) => format!("{first} and {second} hold the same"),
            (_, true) => format!("{first} and {second} hold the same; {tail}"),
            (_, false) => format!("{first} and {second} differ in size only: {tail}"),
        }
    }
}

impl From<&Difference> for DifferenceView {
    fn from(difference: &Difference) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            offset: difference.offset,
            first: hex(&difference.first),
            second: hex(&difference.second),
        }
    }
}

/// Hexadecimal bytes, as people read them.
fn shown(hex: &str) -> String {
    if hex.is_empty() {
        return "has ended".to_owned();
    }
    let pairs: Vec<String> = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8_lossy(pair).into_owned())
        .collect();
    pairs.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(compared: Compared, strict: bool) -> View {
        let args = CompareArgs {
            first: "a".into(),
            second: "b".into(),
            first_format: None,
            second_format: None,
            parents_inside: None,
            strict,
        };
        View::new(&args, compared)
    }

    #[test]
    fn answers_are_sentences() {
        let equal = |second_bytes| Compared {
            first_bytes: 1024,
            second_bytes,
            difference: None,
        };
        let same = view(equal(1024), true);
        assert_eq!(same.sentence(), "a and b hold the same");
        let longer = view(equal(2048), false);
        assert!(longer.same);
        assert!(longer.sentence().contains("b is longer by 1024 bytes"));
        let strict = view(equal(512), true);
        assert!(!strict.same);
        assert!(strict.sentence().contains("a is longer by 512 bytes"));
        let differ = Compared {
            difference: Some(Difference {
                offset: 700,
                first: vec![0, 0xab],
                second: vec![],
            }),
            ..equal(700)
        };
        let differ = view(differ, false);
        assert!(!differ.same);
        assert_eq!(
            differ.sentence(),
            "a and b differ first at offset 700\n  a: 00 ab\n  b: has ended"
        );
    }
}
