//! Lines become commands, or mistakes.

use super::*;
use alloc::string::String;
use proptest::prelude::*;

#[test]
fn lines_become_commands() {
    for (line, command) in [
        ("help", Command::Help),
        ("  vms  ", Command::Vms),
        ("focus two", Command::Focus("two")),
        ("poison", Command::Poison),
        ("poison list", Command::PoisonList(Pa::new(0))),
        ("poison list 0x1000", Command::PoisonList(Pa::new(0x1000))),
        ("poison list 4096", Command::PoisonList(Pa::new(0x1000))),
        ("off", Command::Off),
        ("reboot", Command::Reboot),
        (
            "protect one 0x1000 2 none",
            Command::Protect("one", [0x1000, 2], Narrowing::NONE),
        ),
        ("stage2\tone", Command::Stage2("one")),
        ("poison export", Command::PoisonExport(Pa::new(0))),
        ("poison export 8", Command::PoisonExport(Pa::new(8))),
        (
            "tables one 0x1000",
            Command::Tables("one", Ipa::new(0x1000)),
        ),
        ("counters", Command::Counters),
        ("counters all", Command::CountersAll),
        (
            "inject 0x1000 ao",
            Command::Inject(Pa::new(0x1000), Injection::Optional, 1),
        ),
        (
            "inject 0x1000 ce 16",
            Command::Inject(Pa::new(0x1000), Injection::Corrected, 16),
        ),
        (
            "inject-vm one 0x1000 ao 2",
            Command::InjectVm("one", Ipa::new(0x1000), Injection::Optional, 2),
        ),
        (
            "repair one 0x1000",
            Command::Repair("one", Ipa::new(0x1000), 1, How::InPlace),
        ),
        (
            "repair one 0x1000 8 spare",
            Command::Repair("one", Ipa::new(0x1000), 8, How::Spare),
        ),
        ("filter add drop:", Command::FilterAdd("drop:")),
        ("filter clear", Command::FilterClear),
        (
            "policy one 0x1000 keep",
            Command::Policy("one", Ipa::new(0x1000), Policy::Keep),
        ),
    ] {
        assert_eq!(parse(line), Ok(command), "{line}");
    }
}

#[test]
fn every_mistake_has_a_name() {
    for (line, mistake) in [
        ("", Mistake::UnknownCommand),
        ("Help", Mistake::UnknownCommand),
        ("helpme", Mistake::UnknownCommand),
        ("focus", Mistake::MissingArgument),
        ("vms all", Mistake::ExtraArgument),
        ("stop one two", Mistake::ExtraArgument),
        ("poison lost", Mistake::BadArgument),
        ("protect one 0 1 write", Mistake::BadArgument),
        ("protect one 0 1", Mistake::MissingArgument),
        ("poison list +1", Mistake::BadNumber),
        ("poison list 0x", Mistake::BadNumber),
        ("poison list 0x10000000000000000", Mistake::BadNumber),
        ("poison list 1 2", Mistake::ExtraArgument),
        ("counters some", Mistake::BadArgument),
        ("tables one", Mistake::MissingArgument),
        ("inject", Mistake::MissingArgument),
        ("inject 0x1000", Mistake::MissingArgument),
        ("inject ao 0x1000", Mistake::BadNumber),
        ("inject 0x1000 hard", Mistake::BadArgument),
        ("inject 0x1000 ao 1 1", Mistake::ExtraArgument),
        ("inject-vm 0x1000 ao", Mistake::BadNumber),
        ("repair one", Mistake::MissingArgument),
        ("repair one 0x1000 all", Mistake::BadNumber),
        ("repair one 0x1000 1 magic", Mistake::BadArgument),
        ("filter", Mistake::MissingArgument),
        ("filter add", Mistake::MissingArgument),
        ("filter remove 1", Mistake::BadArgument),
        ("filter clear 1", Mistake::ExtraArgument),
        ("policy one 0x1000", Mistake::MissingArgument),
        ("policy one 0x1000 kee", Mistake::BadArgument),
    ] {
        assert_eq!(parse(line), Err(mistake), "{line}");
    }
}

#[test]
fn rows_are_words_and_no_two_have_one_name() {
    for (at, entry) in COMMANDS.iter().enumerate() {
        for text in [entry.name, entry.arguments, entry.does] {
            assert!(!text.is_empty() && !text.contains(' '), "{text}");
        }
        assert!(COMMANDS[..at].iter().all(|it| it.name != entry.name));
    }
}

proptest! {
    #[test]
    fn any_line_is_a_command_or_a_mistake(line in "[ -~]{0,120}") {
        let _ = parse(&line);
    }

    #[test]
    fn what_a_row_names_is_not_unknown(at in 0..COMMANDS.len(), rest in "[ -~]{0,20}") {
        let line = alloc::format!("{} {rest}", COMMANDS[at].name);
        prop_assert_ne!(parse(&line), Err(Mistake::UnknownCommand));
    }

    #[test]
    fn numbers_are_what_was_written(value: u64) {
        let hex: String = alloc::format!("{value:#x}");
        prop_assert_eq!(number(&hex), Ok(value));
        let decimal: String = alloc::format!("{value}");
        prop_assert_eq!(number(&decimal), Ok(value));
    }
}
