import threading
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from rayhook.fhir.errors import ServiceUnavailable
from rayhook.inference.decode import DecodeLimits, Decoder
from rayhook.inference.study import DecodedInstance
from tests.doubles.dicom_files import (
    dataset,
    encode,
    picture,
    refusal,
)


def test_an_image_that_takes_too_long_is_refused_and_the_next_is_decoded() -> None:
    large = encode(dataset(picture(1500, 1500)), uid.JPEGLSLossless)
    with Decoder() as decoder:
        decoder.decode(encode(dataset(picture())))
        assert refusal(decoder, large, DecodeLimits(timeout_s=0.001))[0] == "decoder_timeout"
        np.testing.assert_array_equal(decoder.decode(encode(dataset(picture()))).pixels[0], picture())


def test_a_child_that_dies_refuses_only_its_image() -> None:
    with Decoder() as decoder:
        child = decoder._idle.queue[-1]
        child._await_ready()
        child._process.kill()
        assert refusal(decoder, encode(dataset(picture())))[0] == "decoder_failed"
        np.testing.assert_array_equal(decoder.decode(encode(dataset(picture()))).pixels[0], picture())


def test_an_image_that_needs_more_memory_than_allowed_is_refused() -> None:
    large = encode(dataset(picture(2000, 2000)), uid.JPEG2000Lossless)
    with Decoder() as decoder:
        assert refusal(decoder, large, DecodeLimits(max_memory_bytes=24 << 20))[0] in (
            "decoder_failed",
            "truncated_pixel_data",
        )
        np.testing.assert_array_equal(decoder.decode(encode(dataset(picture()))).pixels[0], picture())


def test_threads_share_a_decoder() -> None:
    pictures = [picture(seed=seed) for seed in range(16)]
    answers: list[DecodedInstance | None] = [None] * len(pictures)

    def work(index: int) -> None:
        answers[index] = decoder.decode(encode(dataset(pictures[index])))

    with Decoder(children=2) as decoder:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(pictures))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for answer, expected in zip(answers, pictures, strict=True):
        assert answer is not None
        np.testing.assert_array_equal(answer.pixels[0], expected)


def test_closing_ends_the_children() -> None:
    decoder = Decoder()
    process = decoder._idle.queue[-1]._process
    decoder.close()
    assert process.poll() is not None


def test_a_closed_decoder_says_so() -> None:
    decoder = Decoder()
    decoder.close()
    with pytest.raises(ServiceUnavailable):
        decoder.decode(encode(dataset(picture())))


def test_the_child_leaves_no_descriptors_open(decoder: Decoder) -> None:
    data = encode(dataset(picture()))
    decoder.decode(data)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        decoder.decode(data)
    refusal(decoder, data[:-10])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
