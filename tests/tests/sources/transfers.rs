//! Transfers that end early in all ways: only complete lists are accepted.

use allowlist_lists::source::{FetchError, FetchErrorCause, Fetched};
use allowlist_policy::{Format, Http, Pattern};
use allowlist_tests::vendor::{Answer, End, Http2, Vendor, gzip};

use super::{ca_file, check_list, fetch, http, vendor, written};

const TEXT: &str = "192.0.2.0/24\n198.51.100.7\n2001:db8::/32\n";

fn text(url: &str) -> Http {
    Http {
        format: Format::Text,
        ..http(url)
    }
}

/// Fetches a text.
fn fetch_text(answer: Answer) -> Result<Fetched, FetchError> {
    let vendor = vendor([("/list", answer)]);
    fetch(text(&vendor.url("/list")))
}

fn fetch_http2(answer: Http2) -> Result<Fetched, FetchError> {
    let vendor = Vendor::start_http2(answer).expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    fetch(Http {
        ca_file: Some(ca_file(&vendor, folder.path())),
        ..text(&vendor.url("/list"))
    })
}

#[track_caller]
fn check_broken(fetched: &Result<Fetched, FetchError>) {
    let cause = fetched.as_ref().map_err(|error| &*error.cause);
    assert!(
        matches!(cause, Err(FetchErrorCause::Broken { .. })),
        "{fetched:?}"
    );
}

fn raw(head: &str, body: &[u8]) -> Answer {
    Answer::Raw([format!("HTTP/1.1 200 OK\r\n{head}\r\n").as_bytes(), body].concat())
}

#[test]
fn all_members_of_a_compressed_body_are_read() {
    let (first, second) = TEXT.split_at(13);
    let members = [gzip(first.as_bytes()), gzip(second.as_bytes())];
    let encoded = |body: Vec<u8>| {
        fetch_text(Answer::Full(
            200,
            vec![("Content-Encoding", "gzip".into())],
            body,
        ))
    };
    check_list(encoded(members.concat()));
    // Cut off within the second member, or followed by other bytes.
    let mut cut = members.concat();
    cut.truncate(cut.len() - 3);
    check_broken(&encoded(cut));
    let followed = encoded([&members[0][..], b"198.51.100.7\n"].concat());
    let cause = followed
        .expect_err("trailing bytes are not gzip data")
        .cause;
    assert!(
        matches!(*cause, FetchErrorCause::Compressed(_)),
        "{cause:?}"
    );
}

/// Members of several thousand lines, with a correct length.
#[test]
fn members_of_any_size_are_read() {
    let lines = |part: u8, count: u32| {
        let line = |number| format!("198.{}.{}.{}\n", 18 + part, number / 256, number % 256);
        (0..count).map(line).collect::<String>()
    };
    let parts = [lines(0, 10), lines(1, 3000)];
    let body = parts.map(|part| gzip(part.as_bytes())).concat();
    let encoding = vec![("Content-Encoding", "gzip".into())];
    let fetched = fetch_text(Answer::Full(200, encoding, body)).expect("a complete list");
    assert_eq!(fetched.prefixes.len(), 3010);
}

#[test]
fn end_stream_completes_an_http2_stream() {
    let length = Some(TEXT.len());
    let (first, second) = TEXT.split_at(13);
    let members = [gzip(first.as_bytes()), gzip(second.as_bytes())].concat();
    for answer in [
        Http2::whole(TEXT),
        Http2 {
            length,
            ..Http2::whole(TEXT)
        },
        Http2 {
            end: End::Trailers,
            ..Http2::whole(TEXT)
        },
        Http2 {
            end: End::StreamAndReset,
            ..Http2::whole(TEXT)
        },
        Http2 {
            is_gzip: true,
            length: Some(members.len()),
            ..Http2::whole(members)
        },
    ] {
        println!("{answer:?}");
        check_list(fetch_http2(answer));
    }
    // NO_ERROR, CANCEL, INTERNAL_ERROR
    let ends = [
        End::Reset(0),
        End::Reset(8),
        End::Reset(2),
        End::GoAway(0),
        End::Close,
    ];
    for end in ends {
        for length in [None, length] {
            for body in [&TEXT[..26], &TEXT[..13], ""] {
                let answer = Http2 {
                    length,
                    end,
                    ..Http2::whole(body)
                };
                println!("{answer:?}");
                let fetched = fetch_http2(answer);
                assert!(fetched.is_err(), "{fetched:?}");
            }
        }
    }
    // The stream ends with another length than stated.
    let short = fetch_http2(Http2 {
        length,
        ..Http2::whole(&TEXT[..13])
    });
    check_broken(&short);
}

/// Without an end, the last line may be truncated.
#[test]
fn text_that_ends_with_the_connection_is_refused() {
    let close = "Connection: close\r\n";
    for head in [
        "",
        close,
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, gzip\r\nContent-Length: 39\r\n",
    ] {
        let refused = fetch_text(raw(head, TEXT.as_bytes())).expect_err("may be incomplete");
        assert!(
            matches!(*refused.cause, FetchErrorCause::NoLength),
            "{head}: {refused:?}"
        );
    }
    let refused = fetch_text(Answer::Raw(
        format!("HTTP/1.0 200 OK\r\n\r\n{TEXT}").into_bytes(),
    ));
    assert!(refused.is_err(), "{refused:?}");
    check_list(fetch_text(raw("Transfer-Encoding: chunked\r\n", &{
        let size = format!("{:x}\r\n", TEXT.len());
        [size.as_bytes(), TEXT.as_bytes(), b"\r\n0\r\n\r\n"].concat()
    })));
    // The end of a JSON document is in its syntax.
    let vendor = vendor([
        ("/json", raw(close, super::LIST.as_bytes())),
        ("/cut", raw(close, &super::LIST.as_bytes()[..40])),
        ("/page", raw(close, b"<a href='/json'>list</a>")),
    ]);
    check_list(fetch(http(&vendor.url("/json"))));
    let cut = fetch(http(&vendor.url("/cut"))).expect_err("incomplete");
    assert!(matches!(*cut.cause, FetchErrorCause::Feed(_)), "{cut:?}");
    // The end of a page is not, neither of a list nor of a page with its link.
    let discovered = fetch(Http {
        discover: Some(Pattern::new("json").expect("a pattern")),
        ..http(&vendor.url("/page"))
    });
    let cause = discovered.expect_err("may be incomplete").cause;
    assert!(matches!(*cause, FetchErrorCause::NoLength), "{cause:?}");
}

#[test]
fn gzip_files_are_decompressed() {
    let (first, second) = TEXT.split_at(13);
    let file = [gzip(first.as_bytes()), gzip(second.as_bytes())].concat();
    check_list(fetch_text(Answer::Body("application/gzip", file.clone())));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("list.gz");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("a file");
        super::fetch_origin(allowlist_policy::Origin::File {
            path: path.clone(),
            format: Format::Text,
        })
    };
    check_list(read(&file));
    let cut = read(&file[..file.len() - 1]).expect_err("incomplete");
    assert!(matches!(*cut.cause, FetchErrorCause::Gzip(_)), "{cut:?}");
    // Compressed twice: as a file, and by the server.
    check_list(fetch_text(Answer::Gzip(file)));
    let bomb = Answer::Body("application/gzip", gzip(&vec![b' '; 4 << 20]));
    let bomb = fetch_text(bomb).expect_err("too large");
    assert!(
        matches!(*bomb.cause, FetchErrorCause::TooLarge { .. }),
        "{bomb:?}"
    );
    assert_eq!(
        written(&read(&gzip(b"192.0.2.1")).expect("one")),
        ["192.0.2.1/32"]
    );
}
