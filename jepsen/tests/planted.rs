//! Bugs on purpose are in no build that was not asked for them.

mod binary;

#[test]
fn a_build_without_the_feature_has_no_trace_of_it() {
    let path = binary::mailboxd();
    let bytes = std::fs::read(&path).expect("read mailboxd");
    let holds = |word: &str| {
        let word = word.as_bytes();
        bytes.windows(word.len()).any(|window| window == word)
    };
    assert!(holds("flush_age_ms"), "it is the right file");
    for word in [
        mailbox_planted::VARIABLE,
        "mailbox_planted",
        "a bug on purpose",
    ] {
        assert!(!holds(word), "{word} is in {}", path.display());
    }
}
