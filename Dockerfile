# berth as an image: docker build -t berth . && docker run -p 127.0.0.1:5000:5000 -v berth:/data berth
FROM golang:1.26 AS build
ENV OUT=/out CGO_ENABLED=0
WORKDIR /src
COPY . .
RUN make build && mkdir -p "$OUT/data" && cp bin/berth "$OUT/berth"

FROM scratch
COPY --from=build /out/ /
VOLUME /data
EXPOSE 5000
# Inside a container the registry must listen on all addresses for its port to
# be published, and without users berth refuses that unless it is told what
# callers without a name may do. So whoever reaches the published port may push:
# publish it on 127.0.0.1 only, or replace push by pull.
ENTRYPOINT ["/berth"]
CMD ["serve", "--listen", ":5000", "--data", "/data", "--anonymous", "push"]
