import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import soundfile
from checks import refused
from PIL import Image
from report_fixture import EVIL, draw, outputs_of

from lib.report import show


def html_of(show_something, *arguments, **options):
    (output,) = outputs_of(show_something, *arguments, **options)
    return output.data["text/html"]


def test_a_figure_takes_picture_numbers_and_words_along_and_is_refused_without_words_or_by_a_name_that_is_a_path():
    before = plt.get_fignums()  # of other tests
    (output,) = draw("labels", 'Six "male"', data=pd.DataFrame({"class": ["male"], "share": [1 / 3]}), caption="Clips")
    assert Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).width == 1080
    assert output.data["text/csv"] == "class,share\nmale,0.333333\n"
    assert output.metadata["image/png"] == {"alt": 'Six "male"', "width": 720, "height": 288}
    assert (output.metadata["filename"], output.metadata["caption"], plt.get_fignums()) == ("labels", "Clips", before)
    assert draw("labels")[0].data["image/png"] == draw("labels")[0].data["image/png"]
    refused("alt text", show.show_figure, plt.figure(), "empty", " ")
    refused(r"\.\./escape", show.show_figure, plt.figure(), "../escape", "Something.")
    plt.close("all")


def test_a_table_is_escaped_names_models_keeps_a_number_whole_and_says_how_many_rows_it_has():
    frame = pd.DataFrame({EVIL: [[EVIL], None], "model": ["linear", None], "UAR": ["77 % (71 to 83)", np.nan],
                          "n": [12345, 7], "share": [0.12345, np.nan], "right": [True, False]})  # fmt: skip
    table = html_of(show.show_table, frame, EVIL)
    for cell in ("linear model", "77\xa0% (71\xa0to\xa083)", "12,345", "0.123", "yes", "no"):
        assert f">{cell}</td>" in table
    assert [table.count(text) for text in ("&lt;script&gt;", "–", "text-align: right", EVIL)] == [3, 4, 2, 0]
    table = html_of(show.show_table, pd.DataFrame({"x": range(5000)}), "Numbers", limit=10)
    assert table.count("<td") == 10
    assert "<caption>Numbers (the first 10 of 5,000 rows)</caption>" in table
    assert "Empty (nothing to list)" in html_of(show.show_table, pd.DataFrame(columns=["model"]), "Empty")
    assert html_of(show.show_text, "a < b", "", "c") == '<div class="said"><p>a &lt; b</p><p>c</p></div>'
    assert outputs_of(show.show_text, "") == []


def test_a_sound_is_a_small_mp3_under_its_title_and_a_long_or_empty_or_two_channel_one_is_refused():
    shown = html_of(show.show_sound, 0.3 * np.sin(0.07 * np.arange(48_000)), 16_000, EVIL, "a tone")
    content = base64.b64decode(shown.split("base64,")[1].split('"')[0])
    decoded, rate_hz = soundfile.read(io.BytesIO(content))
    assert abs(len(decoded) / rate_hz - 3) < 0.2
    assert (len(content) < 30_000, "<script>" in shown) == (True, False)
    for waveform in (np.zeros(16 * 16_000), np.zeros((2, 5)), np.zeros(0)):
        refused(r"'Silence': give one channel of up to 15 s", show.show_sound, waveform, 16_000, "Silence")
