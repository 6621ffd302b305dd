FROM golang:1.26 AS build
WORKDIR /src
COPY . .
RUN .ci/build

FROM scratch
COPY --from=build /src/bin/berth /berth
EXPOSE 5000
VOLUME /data
ENTRYPOINT ["/berth"]
# Without users, berth serves loopback only, which in a container of its own is
# nobody. --anonymous push opens it to all who reach the published port: publish
# it on 127.0.0.1, or on a network that you trust with every image.
CMD ["serve", "--listen", ":5000", "--data", "/data", "--anonymous", "push"]
