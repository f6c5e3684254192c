"""The viewer's texts in the reader's language. The script asks for them by key; placeholders are `%(name)s`."""

from rayhook.smart_app.i18n import gettext as _


def viewer_texts() -> dict[str, str]:
    return {
        **_frame(),
        **_tools(),
        **_hints(),
        **_states(),
        **_failures(),
        **_keys(),
        **_measures(),
        **_directions(),
    }


def _frame() -> dict[str, str]:
    return {
        "close": _("Close"),
        "current_study": _("Current study"),
        "image": _("Image"),
        "image_of": _("Image %(number)s of %(count)s"),
        "images_short": _("%(count)s images"),
        "investigational": _("Investigational. Not for diagnosis."),
        "opacity": _("Heatmap opacity"),
        "preset": _("Window preset"),
        "preset_abdomen": _("Abdomen"),
        "preset_automatic": _("Automatic"),
        "preset_bone": _("Bone"),
        "preset_brain": _("Brain"),
        "preset_file": _("As in the file"),
        "preset_lung": _("Lung"),
        "preset_mediastinum": _("Mediastinum"),
        "prior": _("Study beside this one"),
        "prior_study": _("Other study"),
        "probability": _("probability %(value)s"),
        "series": _("Series"),
        "strip_caption": _("Probability of each image; the line is the threshold"),
        "toolbar": _("Image tools"),
        "viewport_label": _("Images"),
        "viewport_role": _("image viewport"),
        "window_center_short": _("C"),
        "window_width_short": _("W"),
        "zoom_short": _("Zoom"),
    }


def _tools() -> dict[str, str]:
    return {
        "group_compare": _("Comparison and help"),
        "group_compared": _("Study beside this one"),
        "group_measures": _("Measuring"),
        "group_modes": _("What dragging does"),
        "group_overlay": _("What the model marked"),
        "group_series": _("Series"),
        "group_view": _("View"),
        "group_window": _("Grey levels"),
        "tool_compare": _("Compare"),
        "tool_ellipse": _("Ellipse"),
        "tool_erase": _("Erase"),
        "tool_fit": _("Fit"),
        "tool_flip": _("Flip"),
        "tool_heat": _("Heatmap"),
        "tool_invert": _("Invert"),
        "tool_key": _("Key image"),
        "tool_keyboard": _("Keys"),
        "tool_length": _("Length"),
        "tool_link": _("Linked"),
        "tool_marks": _("Marks"),
        "tool_pan": _("Pan"),
        "tool_probe": _("Probe"),
        "tool_reset": _("Reset"),
        "tool_rotate": _("Rotate"),
        "tool_scroll": _("Scroll"),
        "tool_window": _("Window"),
        "tool_zoom": _("Zoom"),
    }


def _hints() -> dict[str, str]:
    return {
        "hint_compare": _("Show another study of this patient beside this one"),
        "hint_ellipse": _("Measure the values within an ellipse"),
        "hint_erase": _("Erase the measurements on this image"),
        "hint_fit": _("Fit the image to the window"),
        "hint_flip": _("Flip left to right"),
        "hint_heat": _("Show or hide where the model looked"),
        "hint_invert": _("Invert the grey levels"),
        "hint_key": _("Go to the image that weighed most in the answer"),
        "hint_keyboard": _("Keys and gestures"),
        "hint_length": _("Measure a length"),
        "hint_link": _("Scroll both studies together"),
        "hint_marks": _("Show or hide the points that the model rated"),
        "hint_pan": _("Drag to move the image"),
        "hint_probe": _("Read the value of a pixel"),
        "hint_reset": _("Reset window, zoom and orientation"),
        "hint_rotate": _("Rotate by a quarter turn"),
        "hint_scroll": _("Drag to go through the images"),
        "hint_window": _("Drag to change window width and centre"),
        "hint_zoom": _("Drag to zoom"),
    }


def _states() -> dict[str, str]:
    return {
        "erased": _("Measurements erased: %(count)s"),
        "heat_failed": _("The heatmap could not be loaded."),
        "images_failed": _("%(failed)s could not be loaded"),
        "images_fetched": _("%(fetched)s of %(count)s images loaded"),
        "left_out": _("%(count)s further images of this series are not shown"),
        "loading_image": _("Loading image %(number)s of %(count)s …"),
        "lossy": _("Lossy compressed"),
        "no_answer": _("not rated"),
        "no_images": _("This study has no images that can be shown here."),
        "no_priors": _("No other study with images is known for this patient."),
        "opening": _("Asking the image archive for the study …"),
        "priors_failed": _("The list of other studies could not be loaded."),
        "retry": _("Try again"),
        "slow_pacs": _("The image archive is slow to answer."),
        "trying_again": _("Trying again …"),
    }


def _failures() -> dict[str, str]:
    """By the code of the error: what happened, in words that say whom to ask."""
    refused = _("The image archive refused access with the rights that your EHR gave. Launch Rayhook again.")
    absent = _("The image archive does not have these images.")
    broken = _("The image archive gave an answer that could not be understood.")
    damaged = _("This image is damaged or of a kind that cannot be shown.")
    return {
        "failure_title": _("No image."),
        "failure_other": _("The image cannot be shown: %(reason)s."),
        "failure_unknown": _("Something went wrong. Try again, or open Rayhook again from your EHR."),
        "failure_decoder_failed": damaged,
        "failure_decoder_timeout": _("This image took too long to decode."),
        "failure_egress_denied": _(
            "The address of the images is not registered for your EHR. Tell your administrator."
        ),
        "failure_identity_conflict": _("The image archive sent images of another study. They are not shown."),
        "failure_image_not_found": absent,
        "failure_images_not_permitted": _("Your EHR did not permit Rayhook to read imaging studies."),
        "failure_network": _("The connection to Rayhook was lost."),
        "failure_no_dicomweb_endpoint": _(
            "Your EHR names no image archive that Rayhook can read for this study."
        ),
        "failure_not_dicom_json": broken,
        "failure_not_dicom_multipart": broken,
        "failure_not_found": absent,
        "failure_overloaded": _(
            "More images are being fetched than may be at the same time. Try again in a moment."
        ),
        "failure_role_insufficient": _("Your role does not allow seeing images."),
        "failure_service_unavailable": _("Rayhook is not available at the moment."),
        "failure_study_not_found": absent,
        "failure_truncated_response": _("The image archive broke off in the middle of its answer."),
        "failure_unauthenticated": _("Your session has ended. Open Rayhook again from your EHR."),
        "failure_unreadable": damaged,
        "failure_upstream_error": broken,
        "failure_upstream_refused": refused,
        "failure_upstream_timeout": _("The image archive did not answer in time."),
        "failure_upstream_unavailable": _(
            "The image archive cannot be reached, or reports an error of its own."
        ),
        "failure_window_stale": _("Another patient was opened since. Open Rayhook again from the chart."),
        "failure_wrong_answer": broken,
    }


def _keys() -> dict[str, str]:
    return {
        "keys_title": _("Keys and gestures"),
        "key_center": _("Darker or brighter (window centre)"),
        "key_compare": _("Another study beside this one"),
        "key_cross": _("While measuring: set a cross, move it, set each point"),
        "key_ends": _("First or last image"),
        "key_erase": _("Erase the measurements on this image"),
        "key_escape": _("Put the cross or this dialog away"),
        "key_fit": _("Fit the image to the window"),
        "key_help": _("This map of the keys"),
        "key_key": _("The image that weighed most in the answer"),
        "key_layers": _("Heatmap; marks"),
        "key_measures": _("Length, ellipse, probe"),
        "key_modes": _("Dragging scrolls, windows, zooms, pans"),
        "key_page": _("Ten images back or on"),
        "key_pan": _("Move the image"),
        "key_presets": _("Window preset"),
        "key_reset": _("Reset window, zoom and orientation"),
        "key_step": _("Previous or next image"),
        "key_turns": _("Invert, flip, flip top to bottom, rotate"),
        "key_width": _("More or less contrast (window width)"),
        "key_zoom": _("Zoom in or out"),
        "pointers_title": _("Mouse and touch"),
        "pointer_wheel": _("Wheel"),
        "pointer_wheel_does": _("Go through the images"),
        "pointer_main": _("Left button, one finger"),
        "pointer_main_does": _("What is chosen in the bar of tools"),
        "pointer_right": _("Right button"),
        "pointer_right_does": _("Window width and centre"),
        "pointer_middle": _("Middle button, three fingers"),
        "pointer_middle_does": _("Move the image"),
        "pointer_two": _("Two fingers, Ctrl and left button"),
        "pointer_two_does": _("Zoom"),
    }


def _measures() -> dict[str, str]:
    return {
        "at_detector": _("At the detector: not corrected for magnification"),
        "column": _("column"),
        "cross_first": _("First point set. Move to the second and press Enter."),
        "cross_set": _("Cross in the middle of the image. Move it with the arrow keys, then press Enter."),
        "deviation": _("SD"),
        "maximum": _("Max"),
        "mean": _("Mean"),
        "no_spacing": _("The file does not tell the size of a pixel"),
        "row": _("row"),
    }


def _directions() -> dict[str, str]:
    """The letters at the edges of an image. Spec: DICOM PS3.3 C.7.6.1.1.1 (Patient Orientation)."""
    return {
        "direction_A": _("A"),
        "direction_F": _("F"),
        "direction_H": _("H"),
        "direction_L": _("L"),
        "direction_P": _("P"),
        "direction_R": _("R"),
    }
