import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;

/**
 * POSTs a file as JSON with Java's HTTP client as it comes, which asks for an upgrade to HTTP/2: URL FILE ANSWER.
 * Prints the status and writes the answer's body.
 */
public class Client {
    public static void main(String[] args) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(args[0]))
                .header("Content-Type", "application/json; charset=utf-8")
                .POST(HttpRequest.BodyPublishers.ofFile(Path.of(args[1])))
                .build();
        HttpResponse<Path> response =
                HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofFile(Path.of(args[2])));
        System.out.println(response.statusCode() + " " + response.version());
    }
}
