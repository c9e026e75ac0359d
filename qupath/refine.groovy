/*
 * WSI-SAM: corrects an outline with points.
 *
 * Put points where the outline is wrong: inside what is missing with any class, on what is too much with a class
 * that ends in "*" (Ignore*). Select the outline and run; with points selected too, only those count, otherwise all
 * in and around the outline on its plane that no outline was made from or corrected with. What this outline has had
 * is not sent again. Changing the outline is one undo step.
 *
 * For QuPath 0.5 to 0.7. Needs nothing but this file and a running server: docs/QUPATH.md.
 */
import static qupath.lib.gui.scripting.QPEx.*

import com.google.gson.Gson
import com.google.gson.JsonArray
import com.google.gson.JsonElement
import com.google.gson.JsonObject
import com.google.gson.JsonParser
import java.awt.geom.Rectangle2D
import java.net.http.HttpClient
import java.net.http.HttpConnectTimeoutException
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.nio.file.Files
import java.nio.file.Path
import java.security.MessageDigest
import java.time.Duration
import javax.imageio.ImageIO
import qupath.fx.dialogs.Dialogs
import qupath.lib.common.GeneralTools
import qupath.lib.io.PathIO
import qupath.lib.regions.RegionRequest
import qupath.lib.roi.RectangleROI

String serverUrl = 'http://localhost:8000'
String token = ''  // only if the server asks for one

// ---- nothing to change below ----
def server = getCurrentServer()
def selected = server == null ? [] : new ArrayList(getSelectedObjects()).findAll { it.hasROI() }
def outlines = selected.findAll { it.getROI().isArea() }
if (outlines.size() != 1) {
    Tell.error('Select one outline to correct (and, if you like, the points to use).')
    return
}
def outline = outlines[0]
def metadata = outline.getMetadata()
def usedFor = { new Gson().fromJson(it.getMetadata().get('wsisam.points') ?: '[]', List) }
def used = usedFor(outline)
def plane = [z: outline.getROI().getZ(), t: outline.getROI().getT()]
def marked = selected.findAll { it.getROI().isPoint() }
def pointsOf = { objects -> objects.collectMany { Prompts.points(it.getROI(), Prompts.isBackground(it) ? 0 : 1) } }
def points = pointsOf(marked)
def spent = used as Set
if (marked.isEmpty()) {
    def objects = getCurrentHierarchy().getAllObjects(false).findAll { it.hasROI() }
    def onPlane = objects.findAll { it.getROI().getZ() == plane.z && it.getROI().getT() == plane.t }
    points = pointsOf(onPlane.findAll { it.getROI().isPoint() }).findAll { Prompts.near(it, outline.getROI()) }
    spent += onPlane.findAll { it.isAnnotation() }.collectMany(usedFor)  // what lies on a neighbour is beside this
}
def added = points.findAll { !spent.contains(it.collect { number -> (double) number }) }
if (added.isEmpty()) {
    Tell.error('There are no new points in or around the outline.')
    return
}

def client = new WsiSam(serverUrl, token)
def features = [:]
def notes = []
def id = metadata.get('wsisam.prompt') ?: outline.getID().toString()
// What the server no longer remembers is asked anew, with the outline's box. Far background would widen what is sent.
def known = used.findAll { Prompts.near(it, outline.getROI()) }
def anew = [id: id, box: Prompts.box(outline.getROI()), points: known + added] + plane
try {
    if (metadata.get('wsisam.refine') == null) {
        notes = client.segment(server, [anew], features)
    } else {
        try {
            notes = client.segment(server, [[id: id, refine: metadata.get('wsisam.refine'), points: added] + plane], features)
        } catch (WsiSamRefusal e) {
            if (e.problem != 'refine-expired')
                throw e
            notes = client.segment(server, [anew], features) + 'The server had forgotten this outline; it started again from its box.'
        }
    }
} catch (IOException e) {
    Tell.error(e.getMessage())
    throw e
}
if (features.isEmpty()) {
    Tell.error(notes ? notes.join(' ') : 'The corrected outline is empty; the old one stays.')
    return
}
def corrected = WsiSam.read(features.values())[0]
outline.setROI(corrected.getROI())
corrected.getMeasurementList().getNames().each { outline.getMeasurementList().put(it, corrected.getMeasurementList().get(it)) }
metadata.remove('wsisam.refine')
metadata.putAll(corrected.getMetadata())
metadata.put('wsisam.points', new Gson().toJson(used + added))
getCurrentHierarchy().updateObject(outline, false)
notes.unique().each { println "WSI-SAM: ${it}" }
Tell.user("Corrected with ${added.size()} new points.".toString())

// ==== shared by all scripts: from client.part.groovy by inline.py; do not edit here ====

/** A WSI-SAM server, as the scripts use it. All coordinates are full-resolution pixels of the QuPath image. */
class WsiSam {
    /** Most prompts in one request; the server refuses more. */
    static final int BATCH = 256
    static final int RETRIES = 20
    /** Longest side, in pixels, of a region sent for a slide that the server does not have. */
    static final int REGION_PX = 1024
    /** Field of such a region around the prompt's extent: the network looks at up to eight times the object. */
    static final double REGION_FIELD = 8.0
    /** Field around a lone point in a sent region, micrometres (or pixels, where the image has no pixel size). */
    static final double POINT_FIELD = 1024.0

    final String url
    final String token
    private final HttpClient http = HttpClient.newBuilder()
            .version(HttpClient.Version.HTTP_1_1)  // the default would ask for an upgrade to HTTP/2
            .connectTimeout(Duration.ofSeconds(5)).build()
    private final Map<String, String> slideIds = [:]

    WsiSam(String url, String token) {
        this.url = url.trim().replaceAll('/+$', '')
        this.token = token
    }

    /** The server's id of the slide that `server` shows, or null if the server does not have it. */
    String slideId(server) {
        def path = server.getURIs().collect { GeneralTools.toPath(it) }.find { it != null && Files.isRegularFile(it) }
        def name = path != null ? path.getFileName().toString() : nameOf(server)
        if (name == null)
            return null
        def key = path != null ? path.toString() : name
        if (!slideIds.containsKey(key)) {
            def print = path != null ? fingerprint(path) : null
            def same = { slide ->
                print != null ? slide.get('fingerprint').getAsString() == print :
                        slide.get('name').getAsString() == name && slide.get('width').getAsInt() == server.getWidth() &&
                                slide.get('height').getAsInt() == server.getHeight()
            }
            slideIds[key] = findSlide(name, same) ?: (print != null ? findSlide('', same) : null)
        }
        return slideIds[key]
    }

    /** Pages through the slides whose name contains `name`; the id of the first that is `same`. */
    private String findSlide(String name, Closure same) {
        def cursor = ''
        while (true) {
            def query = '?limit=100&q=' + encode(name) + (cursor ? '&cursor=' + encode(cursor) : '')
            def page = get('/v1/slides' + query)
            def found = page.getAsJsonArray('slides').collect { it.getAsJsonObject() }.find(same)
            if (found != null)
                return found.get('id').getAsString()
            def next = page.get('next')
            if (next == null || next.isJsonNull())
                return null
            cursor = next.getAsString()
        }
    }

    /** SHA-256 over the file's size in digits, a newline, its first MiB and its last MiB. */
    static String fingerprint(Path path) {
        def digest = MessageDigest.getInstance('SHA-256')
        def file = new RandomAccessFile(path.toFile(), 'r')
        try {
            long size = file.length()
            int part = (int) Math.min(size, 1L << 20)
            digest.update((size + '\n').getBytes('UTF-8'))
            byte[] bytes = new byte[part]
            file.readFully(bytes)
            digest.update(bytes)
            file.seek(size - part)
            file.readFully(bytes)
            digest.update(bytes)
        } finally {
            file.close()
        }
        return digest.digest().collect { String.format('%02x', it) }.join('')
    }

    /**
     * Asks for the outlines of `prompts`: maps with a unique `id`, and `box` [x0, y0, x1, y1], `points` [[x, y, 1 or 0]]
     * or `refine` (a token); `z` and `t` say the plane in a stack. Fills `features`, id -> GeoJSON Feature, as batches come back, so that the caller keeps
     * what was done when a later batch fails. Returns the sentences about prompts that have no outline.
     */
    List<String> segment(server, List<Map> prompts, Map<String, JsonObject> features) {
        def slide = slideId(server)
        def notes = []
        def batches = prompts.collate(slide != null ? BATCH : 1)
        batches.eachWithIndex { batch, index ->
            if (Thread.interrupted())
                throw new InterruptedException('Stopped.')
            try {
                notes.addAll(slide != null ? segmentSlide(slide, server, batch, features) : segmentRegion(server, batch[0], features))
            } catch (WsiSamRefusal e) {  // a 422 is about this batch's prompts, if it names them or there is only one
                if (e.status != 422 || slide != null && e.promptDetails.isEmpty())
                    throw e
                notes.addAll(e.promptDetails ?: [e.getMessage()])
            }
            if (batches.size() > 1)
                println "WSI-SAM: ${index + 1} of ${batches.size()} requests done"
        }
        return notes
    }

    private List<String> segmentSlide(String slide, server, List<Map> batch, Map<String, JsonObject> features) {
        def body = [prompts: batch.collect { wire(it) }, format: 'geojson', image_size: [server.getWidth(), server.getHeight()]]
        def answer = postJson("/v1/slides/${slide}/segment".toString(), body)
        return collect(answer, batch, features, true) { it }
    }

    /** The way for slides that the server does not have: the prompt's surroundings travel with it, as PNG. */
    private List<String> segmentRegion(server, Map prompt, Map<String, JsonObject> features) {
        if (!server.isRGB())
            throw new IOException('The server does not have this image, and only RGB (brightfield) images can be sent.')
        def request = regionAround(server, prompt)
        if (request == null)
            return ['A prompt lies outside the image.']
        def image = server.readRegion(request)
        double sx = request.getWidth() / (double) image.getWidth()
        double sy = request.getHeight() / (double) image.getHeight()
        def moved = wire(prompt)
        if (prompt.box)
            moved.box = [(prompt.box[0] - request.getX()) / sx, (prompt.box[1] - request.getY()) / sy,
                         (prompt.box[2] - request.getX()) / sx, (prompt.box[3] - request.getY()) / sy]
        if (prompt.points)
            moved.points = prompt.points.collect { [(it[0] - request.getX()) / sx, (it[1] - request.getY()) / sy, it[2]] }
        def body = [prompts: [moved], format: 'geojson']
        double mpp = server.getPixelCalibration().getAveragedPixelSizeMicrons()
        if (!Double.isNaN(mpp))  // JSON has no NaN
            body.mpp = mpp * sx
        def answer = postPicture('/v1/segment', image, body)
        return collect(answer, [prompt], features, false) { scaled(it, sx, sy, request.getX(), request.getY()) }
    }

    /** The members of a prompt that the server knows; the image plane is ours. */
    private static Map wire(Map prompt) {
        return new LinkedHashMap(prompt.subMap(['id', 'box', 'points', 'refine']).findAll { it.value != null })
    }

    /** What is sent for a prompt, or null if nothing of it lies on the image. */
    private static regionAround(server, Map prompt) {
        def xs = (prompt.box ? [prompt.box[0], prompt.box[2]] : []) + (prompt.points ?: []).collect { it[0] }
        def ys = (prompt.box ? [prompt.box[1], prompt.box[3]] : []) + (prompt.points ?: []).collect { it[1] }
        double mpp = server.getPixelCalibration().getAveragedPixelSizeMicrons()
        double extent = Math.max(xs.max() - xs.min(), ys.max() - ys.min())
        double least = prompt.box ? 0 : POINT_FIELD / (Double.isNaN(mpp) ? 1.0 : mpp)  // clicks tell no size
        double side = Math.max(extent * REGION_FIELD, least)
        int x0 = (int) Math.max(0, Math.floor((xs.max() + xs.min() - side) / 2))
        int y0 = (int) Math.max(0, Math.floor((ys.max() + ys.min() - side) / 2))
        int x1 = (int) Math.min(server.getWidth(), Math.ceil((xs.max() + xs.min() + side) / 2))
        int y1 = (int) Math.min(server.getHeight(), Math.ceil((ys.max() + ys.min() + side) / 2))
        if (x1 <= x0 || y1 <= y0)
            return null
        double downsample = Math.max(1.0, Math.max(x1 - x0, y1 - y0) / (double) REGION_PX)
        return RegionRequest.createInstance(server.getPath(), downsample, x0, y0, x1 - x0, y1 - y0,
                (prompt.z ?: 0) as int, (prompt.t ?: 0) as int)
    }

    /** Puts the Features of an answer into `features`, each with the prompt's id and, if any, points and refine token. */
    private static List<String> collect(JsonObject answer, List<Map> batch, Map features, boolean refinable, Closure place) {
        def notes = answer.getAsJsonArray('warnings').collect { textOf(it) }
        def results = answer.getAsJsonArray('results')
        if (results.size() != batch.size())
            throw new IOException("The server answered ${results.size()} results for ${batch.size()} prompts.")
        batch.eachWithIndex { prompt, index ->
            def result = results.get(index).getAsJsonObject()
            def feature = result.get('geojson')
            if (feature != null && feature.isJsonObject()) {
                def metadata = feature.getAsJsonObject().getAsJsonObject('properties').getAsJsonObject('metadata')
                metadata.addProperty('wsisam.prompt', (String) prompt.id)
                if (prompt.points)
                    metadata.addProperty('wsisam.points', new Gson().toJson(prompt.points))
                if (refinable && result.has('refine') && !result.get('refine').isJsonNull())
                    metadata.addProperty('wsisam.refine', result.get('refine').getAsString())
                features[(String) prompt.id] = onPlane(place(feature.getAsJsonObject()), prompt)
            } else if (result.has('problem') && !result.get('problem').isJsonNull()) {
                notes << result.getAsJsonObject('problem').get('detail').getAsString()
            } else {
                notes << 'A prompt has an empty outline: nothing was found there.'
            }
        }
        return notes
    }

    /** The server knows no stacks: an outline belongs to the plane of its prompt. */
    private static JsonObject onPlane(JsonObject feature, Map prompt) {
        if (prompt.z || prompt.t) {
            def plane = new JsonObject()
            plane.addProperty('c', -1)
            plane.addProperty('z', (Number) (prompt.z ?: 0))
            plane.addProperty('t', (Number) (prompt.t ?: 0))
            feature.getAsJsonObject('geometry').add('plane', plane)
        }
        return feature
    }

    private static String textOf(JsonElement warning) {
        if (warning.isJsonPrimitive())
            return warning.getAsString()
        def detail = warning.getAsJsonObject().get('detail')
        return detail != null ? detail.getAsString() : warning.toString()
    }

    private static JsonObject scaled(JsonObject feature, double sx, double sy, double x, double y) {
        def geometry = feature.getAsJsonObject('geometry')
        geometry.add('coordinates', scaledPositions(geometry.getAsJsonArray('coordinates'), sx, sy, x, y))
        return feature
    }

    private static JsonArray scaledPositions(JsonArray array, double sx, double sy, double x, double y) {
        def out = new JsonArray()
        if (array.get(0).isJsonPrimitive()) {
            out.add((Number) (x + sx * array.get(0).getAsDouble()).round(2))
            out.add((Number) (y + sy * array.get(1).getAsDouble()).round(2))
        } else {
            array.each { out.add(scaledPositions(it.getAsJsonArray(), sx, sy, x, y)) }
        }
        return out
    }

    /** Features of `segment` -> QuPath objects, in order, each with the class of the target it was asked for. */
    static List outlines(Map<String, JsonObject> features, Collection targets) {
        def classes = targets.collectEntries { [it.getID().toString(), it.getPathClass()] }
        def outlines = read(features.values())
        [new ArrayList(features.keySet()), outlines].transpose().each { id, outline ->
            if (classes[id] != null)
                outline.setPathClass(classes[id])
        }
        return outlines
    }

    /** Features -> QuPath objects, in order. */
    static List read(Collection<JsonObject> features) {
        def collection = new JsonObject()
        collection.addProperty('type', 'FeatureCollection')
        def array = new JsonArray()
        features.each { array.add(it) }
        collection.add('features', array)
        def objects = PathIO.readObjectsFromGeoJSON(new ByteArrayInputStream(collection.toString().getBytes('UTF-8')))
        if (objects.size() != features.size())  // QuPath's reader skips what it does not know without a word
            throw new IOException("QuPath read ${objects.size()} objects of ${features.size()}.")
        return objects
    }

    JsonObject get(String path) {
        return send(request(path, 60).GET())
    }

    JsonObject postJson(String path, Map body) {
        def text = new Gson().toJson(body)
        return send(request(path, 300).header('Content-Type', 'application/json')
                .POST(HttpRequest.BodyPublishers.ofString(text)))
    }

    private JsonObject postPicture(String path, image, Map body) {
        def boundary = 'wsisam-' + UUID.randomUUID()
        def out = new ByteArrayOutputStream()
        def part = { String head -> out.write("--${boundary}\r\nContent-Disposition: form-data; ${head}\r\n\r\n".getBytes('UTF-8')) }
        part('name="request"\r\nContent-Type: application/json')
        out.write(new Gson().toJson(body).getBytes('UTF-8'))
        out.write('\r\n'.getBytes('UTF-8'))
        part('name="image"; filename="region.png"\r\nContent-Type: image/png')
        ImageIO.write(image, 'PNG', out)
        out.write("\r\n--${boundary}--\r\n".getBytes('UTF-8'))
        return send(request(path, 300).header('Content-Type', 'multipart/form-data; boundary=' + boundary)
                .POST(HttpRequest.BodyPublishers.ofByteArray(out.toByteArray())))
    }

    private HttpRequest.Builder request(String path, int seconds) {
        HttpRequest.Builder builder
        try {
            builder = HttpRequest.newBuilder(URI.create(url + path)).timeout(Duration.ofSeconds(seconds))
        } catch (IllegalArgumentException e) {
            throw new WsiSamUnreachable("serverUrl is '${url}', which is not an address that begins with http:// or https:// (${e.getMessage()}).", e)
        }
        if (token)
            builder.header('Authorization', 'Bearer ' + token)
        return builder
    }

    /** Sends; waits and tries again while the server is busy; an error becomes a sentence that a user can act on. */
    private JsonObject send(HttpRequest.Builder builder) {
        def request = builder.build()
        for (int attempt = 0; ; attempt++) {
            HttpResponse<String> response
            try {
                response = http.send(request, HttpResponse.BodyHandlers.ofString())
            } catch (ConnectException | HttpConnectTimeoutException e) {
                def reason = e.getMessage() ? " (${e.getMessage()})" : ''
                throw new WsiSamUnreachable("No WSI-SAM server answers at ${url}. Is it running, and is serverUrl right?${reason}", e)
            }
            int status = response.statusCode()
            if ((status == 503 || status == 429) && attempt < RETRIES) {
                def wait = response.headers().firstValue('Retry-After').orElse('2')
                Thread.sleep(1000L * (wait.isInteger() ? Math.min(30, Math.max(1, wait.toInteger())) : 2))
                continue
            }
            if (status < 200 || status > 299)
                throw new WsiSamRefusal(status, response.body())
            return JsonParser.parseString(response.body()).getAsJsonObject()
        }
    }

    private static String nameOf(server) {
        def uri = server.getURIs().find { true }
        return uri == null || uri.getPath() == null ? null : uri.getPath().tokenize('/')[-1]
    }

    private static String encode(String text) {
        return URLEncoder.encode(text, 'UTF-8')
    }
}

/** No server can be reached, whatever it is asked. */
class WsiSamUnreachable extends IOException {
    WsiSamUnreachable(String message, Throwable cause) {
        super(message, cause)
    }
}

/**
 * An answer that is not a success; `problem` is the last word of the problem's type, such as refine-expired, and
 * `promptDetails` are the sentences about each prompt, where all of a request are bad.
 */
class WsiSamRefusal extends IOException {
    final int status
    final String problem
    final List<String> promptDetails

    WsiSamRefusal(int status, String body) {
        super("The WSI-SAM server answered ${status}: ${field(body, 'detail') ?: body}".toString())
        this.status = status
        this.problem = (field(body, 'type') ?: '').tokenize('/').find { it != 'problems' }
        this.promptDetails = details(body)
    }

    private static List<String> details(String body) {
        try {
            def errors = JsonParser.parseString(body).getAsJsonObject().getAsJsonArray('errors')
            return errors.collect { it.getAsJsonObject().get('detail').getAsString() }
        } catch (RuntimeException ignored) {
            return []
        }
    }

    private static String field(String body, String name) {
        try {
            return JsonParser.parseString(body).getAsJsonObject().get(name)?.getAsString()
        } catch (RuntimeException ignored) {
            return null
        }
    }
}

/** Prompts from QuPath objects. A class whose name ends in "*" (such as Ignore*) marks background points. */
class Prompts {
    static boolean isBackground(object) {
        return object.getPathClass()?.toString()?.endsWith('*') ?: false
    }

    /** The prompt of an object: its bounding box, or for points and lines all their positions as positive points. */
    static Map of(object) {
        def roi = object.getROI()
        def prompt = [id: object.getID().toString(), z: roi.getZ(), t: roi.getT()]
        if (roi.isArea())
            prompt.box = box(roi)
        else
            prompt.points = points(roi, 1)
        return prompt
    }

    /** Adds background points: to points all of them, to a box those inside it, as others would widen the view. */
    static Map withBackground(Map prompt, List background) {
        def box = prompt.box
        def near = box ? background.findAll { it[0] >= box[0] && it[0] <= box[2] && it[1] >= box[1] && it[1] <= box[3] } : background
        return near ? prompt + [points: (prompt.points ?: []) + near] : prompt
    }

    /** Whether a position lies in the bounding box of `roi`, grown by half its size on each side. */
    static boolean near(List point, roi) {
        double dx = roi.getBoundsWidth() / 2
        double dy = roi.getBoundsHeight() / 2
        return Math.abs(point[0] - roi.getBoundsX() - dx) <= 2 * dx && Math.abs(point[1] - roi.getBoundsY() - dy) <= 2 * dy
    }

    static List box(roi) {
        return [roi.getBoundsX(), roi.getBoundsY(), roi.getBoundsX() + roi.getBoundsWidth(), roi.getBoundsY() + roi.getBoundsHeight()]
    }

    static List points(roi, int label) {
        return roi.getAllPoints().collect { [it.getX(), it.getY(), label] }
    }
}

/** What the user is told: in the log, and as a notification where there is a window. */
class Tell {
    static void user(String text) {
        println "WSI-SAM: ${text}"
        if (getQuPath() != null)
            Dialogs.showInfoNotification('WSI-SAM', text)
    }

    static void error(String text) {
        println "WSI-SAM: ${text}"
        if (getQuPath() != null)
            Dialogs.showErrorNotification('WSI-SAM', text)
    }
}
