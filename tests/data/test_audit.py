"""The command prints a table and writes a page."""

from small_recordings import write_clip_set

from data import audit


def plant_source(rows, waves):
    rows[0]["split"] = "test"


def test_the_command_prints_a_table_and_writes_a_page(tmp_path, capsys):
    folder = write_clip_set(tmp_path, plant_source)
    page = tmp_path / "pages" / "audit.html"
    assert audit.main([str(folder), "--no-voice", "--page", str(page)]) == 1
    out = capsys.readouterr().out
    assert "FAULT  leak: source 'source0'" in out and "80 clips" in out
    text = page.read_text()
    assert text.count("<audio") >= 12 and "data:audio/wav;base64," in text
    assert "source &#39;source0&#39; stands in test and train" in text
    assert "http" not in text  # nothing is fetched


def test_clip_names_cannot_bring_markup_into_the_page(tmp_path):
    def plant(rows, waves):
        rows[0]["source_id"] = rows[1]["source_id"] = "<script>alert(1)</script>"

    audit.main(
        [str(write_clip_set(tmp_path, plant)), "--no-voice", "--page", str(tmp_path / "a.html")]
    )
    text = (tmp_path / "a.html").read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_manifest_that_cannot_be_read_is_wrong_use(tmp_path, capsys):
    assert audit.main([str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
