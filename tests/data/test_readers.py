"""Web archives, papers and question-and-answer dumps become documents; what is damaged is named or counted."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pyarrow
import pyarrow.parquet as parquet
import pytest
from datatrove.data import Document
from samples import write_jsonl

from mobillama.config import SourceConfig
from mobillama.data.ingest import read_task
from mobillama.data.latex import main_text
from mobillama.data.sources import list_tasks
from mobillama.data.stackexchange import light_text
from mobillama.errors import DamagedFileError, InputError

PAGE = """<html><head><title>t</title></head><body><nav>Home About Contact</nav><article><h1>Tides</h1><p>The sea rises
twice a day on most coasts, and it falls as often. Nobody on the pier could say why it was late that morning, but the
boats lay dry until noon.</p><p>Später kam die Flut, größer als sonst, and the boats floated again without a word from
anyone who had waited.</p></article><footer>Imprint</footer></body></html>"""

# Megabytes at the peak; not ru_maxrss, which remembers the process that this one was forked from.
PEAK = (
    "import re\nfrom pathlib import Path\n"
    "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10\n"
)


def read(**source: Any) -> list[Document]:
    return [document for task in list_tasks(SourceConfig.model_validate(source)) for document in read_task(task)]


def make_warc(path: Path, pages: list[tuple[bytes, str, str, str]]) -> bytes:
    """An archive of (body, Content-Type, status line, type of record)."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    data = io.BytesIO()
    writer = WARCWriter(data, gzip=True)
    for number, (body, kind, status, record_type) in enumerate(pages):
        http = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.1")
        record = writer.create_warc_record(
            f"http://example.org/{number}",
            record_type,
            payload=io.BytesIO(body),
            http_headers=http if record_type == "response" else None,
            warc_content_type="text/plain" if record_type == "conversion" else "",
            warc_headers_dict={"WARC-Record-ID": f"<urn:uuid:{number}>"},
        )
        writer.write_record(record)
    path.write_bytes(data.getvalue())
    return data.getvalue()


def test_pages_of_a_web_archive_give_their_text_and_nothing_else_does(tmp_path: Path):
    pages = [
        (PAGE.encode(), "text/html", "200 OK", "response"),
        (b"GIF89a", "image/gif", "200 OK", "response"),
        (PAGE.encode("latin-1"), "text/html; charset=ISO-8859-1", "200 OK", "response"),
        (b"<html>Not found</html>", "text/html", "404 Not Found", "response"),
        (b"<html><body></body></html>", "text/html", "200 OK", "response"),
        (b"Plain words of a page", "text/plain", "200 OK", "conversion"),
    ]
    make_warc(tmp_path / "web.warc.gz", pages)
    found = read(kind="warc", root=str(tmp_path), license="LicenseRef-pages")
    assert [d.metadata["record"] for d in found] == [1, 3, 5, 6]
    assert "The sea rises" in found[0].text and "größer" in found[0].text
    assert "Imprint" not in found[0].text and "Contact" not in found[0].text
    assert found[1].text == found[0].text
    assert [d.text for d in found[2:]] == ["", "Plain words of a page"]
    first = found[0]
    assert (first.id, first.metadata["url"], first.metadata["license"], first.metadata["source"]) == (
        "urn:uuid:0",
        "http://example.org/0",
        "LicenseRef-pages",
        "web",
    )
    assert first.metadata["raw"] == first.text.encode()


def test_a_pages_text_does_not_depend_on_the_pages_before_it(tmp_path: Path):
    make_warc(tmp_path / "web.warc.gz", [(PAGE.encode(), "text/html", "200 OK", "response")] * 4)
    assert len({d.text for d in read(kind="warc", root=str(tmp_path))}) == 1


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
def test_a_web_archive_cut_short_is_named(tmp_path: Path, kept: float):
    data = make_warc(tmp_path / "web.warc.gz", [(PAGE.encode(), "text/html", "200 OK", "response")] * 3)
    (tmp_path / "web.warc.gz").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DamagedFileError, match=r"web\.warc\.gz: after record \d"):
        read(kind="warc", root=str(tmp_path))
    plain = gzip.decompress(data)
    (tmp_path / "web.warc.gz").unlink()
    (tmp_path / "web.warc").write_bytes(plain[: int(len(plain) * kept)])
    with pytest.raises(DamagedFileError, match=r"web\.warc: after record \d"):
        read(kind="warc", root=str(tmp_path))


def make_tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


INTRO = """Grüße. % a remark
% only a remark
100\\% sure
\\begin{verbatim}
% kept
\\end{verbatim}"""
MAIN = """\\documentclass{article}
\\begin{document}
\\input{sections/intro}
\\include{gone}
\\end{document}
"""
PAPER = {
    "sections/intro.tex": INTRO.encode(),
    "main.tex": MAIN.encode(),
    "figure.eps": b"%!PS",
    "old/main.tex": b"\\documentclass{article} draft",
}
PAPER_TEXT = (
    "\\documentclass{article}\n\\begin{document}\nGrüße.\n100\\% sure\n\\begin{verbatim}\n% kept\n\\end{verbatim}\n"
    "\\include{gone}\n\\end{document}\n"
)


def test_a_tar_of_papers_gives_a_document_a_paper(tmp_path: Path):
    papers = {
        "2101/2101.00001.gz": gzip.compress(make_tar(PAPER)),
        "2101/2101.00002.gz": gzip.compress(b"\\documentstyle{old}\nna\xefve % words"),
        "2101/2101.00003.pdf": b"%PDF-1.5",
        "2101/2101.00004.gz": gzip.compress(make_tar(PAPER))[:-30],
        "2101/hep-th9901001.gz": gzip.compress(make_tar({"notes.tex": b"no main file", "more.tex": b"here"})),
    }
    (tmp_path / "arXiv_src_2101_001.tar").write_bytes(make_tar(papers))
    found = read(kind="latex", root=str(tmp_path), license="LicenseRef-arXiv")
    assert [(d.id, d.metadata.get("dropped")) for d in found] == [
        ("arxiv/2101.00001", None),
        ("arxiv/2101.00002", None),
        ("arxiv/2101.00003", "no_source"),
        ("arxiv/2101.00004", "damaged"),
        ("arxiv/hep-th/9901001", "no_source"),
    ]
    assert [d.text for d in found[:2]] == [PAPER_TEXT, "\\documentstyle{old}\nnaïve"]
    assert [d.metadata["record"] for d in found] == [1, 2, 3, 4, 5]
    assert found[0].metadata["url"] == "https://arxiv.org/abs/2101.00001"
    assert found[0].metadata["raw"].decode() == PAPER_TEXT


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("paper.tar.gz", gzip.compress(make_tar(PAPER))),
        ("paper.gz", gzip.compress(make_tar(PAPER))),
        ("paper.tar", make_tar(PAPER)),
    ],
)
def test_a_paper_is_read_from_any_archive(tmp_path: Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    assert [d.text for d in read(kind="latex", root=str(tmp_path))] == [PAPER_TEXT]


def test_no_path_leads_out_of_a_papers_archive_and_no_file_holds_itself(tmp_path: Path):
    (tmp_path / "secret.tex").write_text("secret")
    files = {"ms.tex": f"\\documentclass{{a}}\n\\input{{../secret}}\n\\input{{{tmp_path}/secret}}\n\\input{{ms}}"}
    assert main_text(files) == files["ms.tex"]
    loop = {"a.tex": "\\documentclass{a} \\input{b}", "b.tex": "B \\input a \\input{c}", "c.tex": "C \\input{b}"}
    assert main_text(loop) == "\\documentclass{a} B \\input a C \\input{b}"


def test_files_that_put_in_each_other_again_and_again_stay_small():
    """Without a bound, 30 files of two inputs each are a billion lines."""
    files = {f"f{n}.tex": f"\\input{{f{n + 1}}}\\input{{f{n + 1}}}" + "x" * 400_000 for n in range(30)}
    text = main_text({"ms.tex": "\\documentclass{a}\\input{f0}", **files})
    assert text is not None and len(text) < 200e6


def test_a_tar_of_papers_cut_short_is_named(tmp_path: Path):
    data = make_tar({f"2101/2101.0000{n}.gz": gzip.compress(make_tar(PAPER)) for n in range(5)})
    (tmp_path / "papers.tar").write_bytes(data[:2000])
    with pytest.raises(DamagedFileError, match=r"papers\.tar: after paper \d it cannot be unpacked"):
        read(kind="latex", root=str(tmp_path))


def posts(*rows: dict[str, str]) -> bytes:
    lines = ("  <row " + " ".join(f"{key}={quoteattr(value)}" for key, value in row.items()) + " />" for row in rows)
    return ('\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n' + "\n".join(lines) + "\n</posts>").encode()


def question(key: int, **more: str) -> dict[str, str]:
    about = {
        "Title": f"Question {key}?",
        "Body": "<p>Why?</p>",
        "Score": "2",
        "CreationDate": "2014-01-01T00:00:00.000",
    }
    return {"Id": str(key), "PostTypeId": "1", **about, **more}


def answer(key: int, parent: int, score: int, **more: str) -> dict[str, str]:
    about = {"Body": f"<p>Answer {key}</p>", "CreationDate": "2014-01-02T00:00:00.000"}
    return {"Id": str(key), "PostTypeId": "2", "ParentId": str(parent), "Score": str(score), **about, **more}


POSTS = posts(
    question(1, AcceptedAnswerId="5"),
    question(2, Score="-1"),
    answer(4, 1, 9),
    answer(5, 1, 0),
    question(3),
    answer(6, 2, 1),
    answer(7, 1, 3, LastEditDate="2019-05-05T00:00:00.000"),
    {"Id": "8", "PostTypeId": "5", "Body": "a tag's text"},
    answer(9, 77, 1),
    question(10),
    answer(11, 10, 1),
)


def test_a_question_stands_with_its_answers_the_accepted_first_then_by_score(tmp_path: Path):
    (tmp_path / "beer.stackexchange.com").mkdir()
    (tmp_path / "beer.stackexchange.com" / "Posts.xml").write_bytes(POSTS)
    found = read(kind="stackexchange", root=str(tmp_path))
    assert found[0].text == "Q: Question 1?\n\nWhy?\n\nA: Answer 5\n\nA: Answer 4\n\nA: Answer 7"
    site = "beer.stackexchange.com"
    assert [(d.id, d.metadata["record"], d.metadata.get("dropped")) for d in found] == [
        (f"{site}/{site}/1", 1, None),
        (f"{site}/{site}/2", 2, "low_score"),
        (f"{site}/{site}/3", 5, "unanswered"),
        (f"{site}/{site}/10", 10, None),
    ]
    assert [d.metadata["license"] for d in found] == ["CC-BY-SA-4.0", "CC-BY-SA-3.0", "CC-BY-SA-3.0", "CC-BY-SA-3.0"]
    assert found[3].metadata["url"] == "https://beer.stackexchange.com/questions/10"


def test_a_dump_cut_short_is_named(tmp_path: Path):
    (tmp_path / "Posts.xml").write_bytes(POSTS[:-40])
    with pytest.raises(DamagedFileError, match=r"Posts\.xml: after row \d+ it is not the XML of a dump"):
        read(kind="stackexchange", root=str(tmp_path))


def test_html_of_posts_becomes_light_text():
    html = (
        '<p>See <a href="https://x.org">this\npage</a> &amp; <em>think</em>:</p>\n<ul>\n'
        "<li>one <code>a &lt; b</code></li>\n<li>two</li>\n</ul>\n<pre><code>if x:\n    y()\n</code></pre>\n"
        "<blockquote>\n  <p>said<br>so</p>\n</blockquote>"
        '<ol><li>first</li><li>second</li></ol><p><img src="x.png" alt="no"></p>'
    )
    assert light_text(html) == (
        "See this page & _think_:\n\n- one `a < b`\n\n- two\n\n    if x:\n        y()\n\n> said\n> so\n\n"
        "1. first\n\n2. second"
    )


def test_memory_of_a_dump_has_a_bound(tmp_path: Path):
    """60 MB of posts in a process that may take 60 MB more than it starts with."""
    with (tmp_path / "Posts.xml").open("wb") as file:
        file.write(b"<posts>\n")
        for number in range(1, 3001):
            rows = posts(
                question(number, Body="<p>" + "w " * 5000), answer(10_000 + number, number, 1, Body="v " * 5000)
            )
            file.write(b"\n".join(rows.split(b"\n")[2:-1]) + b"\n")
        file.write(b"</posts>")
    script = (
        PEAK + "import sys\nfrom mobillama.config import SourceConfig\nfrom mobillama.data.ingest import read_task\n"
        "from mobillama.data.sources import list_tasks\n"
        "tasks = list_tasks(SourceConfig(kind='stackexchange', root=sys.argv[1]))\n"
        "before = peak()\n"
        "print(sum(1 for task in tasks for _ in read_task(task)))\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    documents, megabytes = map(int, done.stdout.split())
    assert documents == 3000
    assert megabytes < 60


def test_the_text_may_be_in_another_field_and_the_id_in_none(tmp_path: Path):
    rows = [{"content": "code", "id": "7", "max_stars_repo_path": "a.py"}, {"content": "more", "id": "8"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "star.parquet")
    write_jsonl(tmp_path / "star.jsonl", rows)
    for kind in ("parquet", "jsonl"):
        found = read(kind=kind, root=str(tmp_path), text_field="content", id_field="", license="MIT")
        assert [(d.text, d.id, d.metadata["license"]) for d in found] == [
            ("code", f"star/star.{kind}#1", "MIT"),
            ("more", f"star/star.{kind}#2", "MIT"),
        ]
    with pytest.raises(InputError, match="expected a field 'txt' that is a string"):
        read(root=str(tmp_path), text_field="txt", bad_records="stop")


def test_redpajama_keeps_the_address_in_meta(tmp_path: Path):
    write_jsonl(tmp_path / "c4.jsonl", [{"text": "t", "meta": {"url": "https://a.org", "source": "c4"}}])
    assert [d.metadata["url"] for d in read(root=str(tmp_path))] == ["https://a.org"]


def test_a_setting_that_a_kind_takes_no_notice_of_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match=r"source\.text_field means nothing to a source of kind 'warc'"):
        read(kind="warc", root=str(tmp_path), text_field="content")
    with pytest.raises(InputError, match=r"source\.root means nothing to a source of kind 'python-installation'"):
        read(kind="python-installation", root=str(tmp_path))


@pytest.mark.slow
def test_a_line_of_200_megabytes_takes_less_than_a_gigabyte(tmp_path: Path):
    with (tmp_path / "big.jsonl").open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"many words " * 95_325)
        file.write(b'"}\n' + json.dumps({"text": "small"}).encode() + b"\n")
    script = (
        PEAK + "import sys\nfrom mobillama.config import SourceConfig\nfrom mobillama.data.ingest import read_task\n"
        "from mobillama.data.sources import list_tasks\n"
        "print([len(d.text) for task in list_tasks(SourceConfig(root=sys.argv[1])) for d in read_task(task)])\n"
        "print(peak())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    lengths, megabytes = done.stdout.splitlines()
    assert json.loads(lengths) == [209_715_000, 5]
    assert int(megabytes) < 1000
