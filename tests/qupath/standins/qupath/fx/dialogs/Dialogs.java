package qupath.fx.dialogs;

import java.util.ArrayList;
import java.util.List;

/** Stand-in: keeps what a user would have seen. */
public final class Dialogs {
    public static final List<String> SHOWN = new ArrayList<>();

    private Dialogs() {}

    public static void showInfoNotification(String title, String message) {
        SHOWN.add("info: " + message);
    }

    public static void showErrorNotification(String title, String message) {
        SHOWN.add("error: " + message);
    }
}
