//! `tidegate completions` and `tidegate man`: made from the command line's own description, so that they can't differ
//! from it.

use super::{Cli, Exit, print};
use crate::daemon::Failure;
use clap::{Arg, Command, CommandFactory, ValueHint};
use clap_complete::Shell;
use std::fmt::Write;
use std::path::Path;

/// The name of the program.
const NAME: &str = "tidegate";

/// Prints what the shell reads to complete our command lines.
pub(super) fn completions(shell: Shell) -> Result<(), Exit> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut text);
    if shell == Shell::Fish {
        text.extend(fish_arguments(&Cli::command()).into_bytes());
    }
    print(&text)
}

/// What the library leaves out for fish: the values that arguments without a name may have, and that the others are no
/// files.
fn fish_arguments(command: &Command) -> String {
    let mut lines = String::new();
    for subcommand in command.get_subcommands() {
        let condition = format!("__fish_{NAME}_using_subcommand {}", subcommand.get_name());
        let is_path =
            |arg: &Arg| matches!(arg.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath);
        if !subcommand.get_positionals().any(is_path) {
            // Writing to a string can't fail, here and below.
            let _ = writeln!(lines, "complete -c {NAME} -n \"{condition}\" -f");
        }
        for (place, argument) in subcommand.get_positionals().enumerate() {
            // Ours, the subcommand, and what comes before it; the value of an option counts as well.
            let words = format!("(count (commandline -opc | string match -v -- '-*')) -ge {}", place + 2);
            for value in argument.get_possible_values().iter().filter(|value| !value.is_hide_set()) {
                let (name, help) = (value.get_name(), value.get_help().map(ToString::to_string).unwrap_or_default());
                let help = help.replace('\\', "\\\\").replace('\'', "\\'");
                let _ =
                    writeln!(lines, "complete -c {NAME} -n \"{condition}; and test {words}\" -f -a {name} -d '{help}'");
            }
        }
    }
    lines
}

/// Writes a page for the program and one for each subcommand.
pub(super) fn man(folder: &Path) -> Result<(), Exit> {
    let write = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    write.map_err(|error| Failure::System(format!("can't write manual pages to {}: {error}", folder.display())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fish_is_told_of_the_values_that_have_no_option_and_where_there_are_no_files() {
        let lines = fish_arguments(&Cli::command());
        let has = |wanted: &str| lines.lines().any(|line| line == wanted);
        let words = |count: usize| format!("test (count (commandline -opc | string match -v -- '-*')) -ge {count}");
        let of = |subcommand: &str| format!("complete -c tidegate -n \"__fish_tidegate_using_subcommand {subcommand}");
        assert!(has(&format!("{}; and {}\" -f -a debug -d ''", of("log"), words(2))), "{lines}");
        assert!(has(&format!("{}; and {}\" -f -a auto -d 'As they say'", of("health"), words(3))), "{lines}");
        assert!(has(&format!("{}; and {}\" -f -a zsh -d ''", of("completions"), words(2))), "{lines}");
        assert!(has(&format!("{}\" -f", of("drain"))), "{lines}");
        assert!(!has(&format!("{}\" -f", of("man"))), "it takes a folder");
    }
}
